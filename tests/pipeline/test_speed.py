"""The accounting of a run, against hand counts. B rows, X inputs, H hidden, Z latent."""

import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.speed.ceiling import Ceilings, does_bf16_well, measure
from pipeline.speed.communication import NOTHING, Communication, Sent, spent
from pipeline.speed.energy import Energy, energy_of, nvml_counter
from pipeline.speed.figures import Stretch, speed
from pipeline.speed.flops import Cost, step_cost
from pipeline.speed.phases import Phases
from tests.vaegan.two_ranks import on_two_ranks
from vaegan import build, config
from vaegan.objective import players, turns, weights_at
from vaegan.step import Batch, Noise, step

CPU = torch.device("cpu")
CEILINGS = Ceilings(fp32_flop_per_s=100.0, bf16_flop_per_s=400.0, copy_bytes_per_s=1000.0)


def linear(rows: int, inputs: int, outputs: int, passes: int) -> int:
    """Of a linear layer: one pass forward, one backward to its weights, one to its inputs."""
    return passes * 2 * rows * inputs * outputs


class Game:
    """A small VAE-GAN with the plain networks, and its step."""

    def __init__(self, schedule: str) -> None:
        torch.manual_seed(0)
        self.objective = config.Objective(schedule="joint" if schedule == "joint" else "plain")
        networks = config.Networks(family="mlp", latent=3, width=5, norm="none")
        self.model = build(networks, self.objective.likelihood, (1, 4, 4))
        self.players = players(self.model, self.objective, config.Optimizers())
        self.batch, self.noise = Batch(torch.rand(6, 1, 4, 4)), Noise(*torch.randn(2, 6, 3))

    def play(self) -> None:
        step(turns(self.objective), self.players, self.batch, self.noise, weights_at(self.objective, 0))


def learning_and_judging(b: int, x: int, h: int) -> int:
    """D on images and as many samples; then D frozen, on samples, through which gradients pass to their maker."""
    return linear(2 * b, x, h, 2) + linear(2 * b, h, 1, 3) + linear(b, x, h, 2) + linear(b, h, 1, 2)


def encoder(b: int, x: int, h: int, z: int) -> int:
    return linear(b, x, h, 2) + 2 * linear(b, h, z, 3)  # images ask for no gradient


def test_the_flop_of_a_joint_step_are_those_counted_by_hand() -> None:
    b, x, h, z = 6, 16, 5, 3
    decoder = linear(2 * b, z, h, 3) + linear(2 * b, h, x, 3)
    assert step_cost(Game("joint").play).flop == encoder(b, x, h, z) + decoder + learning_and_judging(b, x, h)


def test_the_flop_of_a_plain_step_are_those_counted_by_hand() -> None:
    b, x, h, z = 6, 16, 5, 3
    generator = linear(b, z, h, 2) + linear(b, h, x, 3)  # prior codes ask for no gradient
    decoder = linear(b, z, h, 3) + linear(b, h, x, 3)
    expected = learning_and_judging(b, x, h) + generator + encoder(b, x, h, z) + decoder
    assert step_cost(Game("plain").play).flop == expected


def test_counting_a_step_changes_nothing_in_it() -> None:
    counted, plain = Game("joint"), Game("joint")
    step_cost(counted.play)
    plain.play()
    for name, value in plain.model.state_dict().items():
        assert torch.equal(counted.model.state_dict()[name], value), name


def test_bytes_are_what_operators_read_and_write() -> None:
    a, b = torch.rand(4, 8), torch.rand(8, 16)
    assert step_cost(lambda: a @ b).bytes == 4 * (4 * 8 + 8 * 16 + 4 * 16)
    assert step_cost(lambda: a.add_(a)).bytes == 4 * 3 * 32
    assert step_cost(lambda: a.t().reshape(2, 16)[0].expand(3, 16)).bytes == 4 * 2 * 32, (
        "views are free, the copy is not"
    )
    assert step_cost(lambda: torch.empty(9)).bytes == 0
    assert Cost(12.0, 6.0).over(3) == Cost(4.0, 2.0)


def test_ceilings_are_measured_in_under_two_seconds() -> None:
    start = time.process_time()
    found = measure(CPU)
    assert time.process_time() - start < 2
    assert 1e8 < found.fp32_flop_per_s < 1e14
    assert 1e8 < found.copy_bytes_per_s < 1e13


def test_bf16_is_done_well_from_one_and_a_half_times_fp32() -> None:
    assert does_bf16_well(Ceilings(2.0, 3.0, 1.0))
    assert not does_bf16_well(Ceilings(2.0, 2.9, 1.0))


def test_a_phase_inside_another_is_counted_once() -> None:
    phases = Phases(CPU)
    start = time.perf_counter()
    with phases("backward"):
        time.sleep(0.02)
        with phases("communication"):
            time.sleep(0.05)
        time.sleep(0.01)
    time.sleep(0.02)
    with phases("backward"):
        time.sleep(0.01)
    whole = time.perf_counter() - start
    read = phases.read()
    assert read.keys() == {"backward", "communication"}
    assert read["backward"] >= 0.04
    assert read["communication"] >= 0.05
    assert sum(read.values()) <= whole - 0.02, "what no phase claims is in none"
    assert phases.read() == {}


def test_phases_watch_a_step() -> None:
    phases, game = Phases(CPU), Game("plain")
    step(turns(game.objective), game.players, game.batch, game.noise, weights_at(game.objective, 0), watch=phases)
    read = phases.read()
    assert read.keys() == {"forward", "backward", "update"}
    assert all(spent > 0 for spent in read.values())


def test_overlapping_buckets_are_counted_once_and_the_last_one_is_exposed() -> None:
    assert spent([(0.0, 3.0), (1.0, 4.0), (6.0, 8.0)]) == (6.0, 2.0)
    assert spent([(0.0, 5.0), (2.0, 6.0)]) == (6.0, 4.0)
    assert spent([(0.0, 9.0), (2.0, 6.0)]) == (9.0, 7.0), "an earlier bucket may arrive last"


LAYERS, SIDE = 4, 300
MEGABYTE_BUCKETS = 1.0
"""A layer is 360 kB: DDP starts with a bucket of its own size, then packs three."""


def reduced(rank: int) -> list[dict[str, Tensor]]:
    """Gradients of two steps, and what they took to send: as DDP does it, timed, and timed in bf16."""
    return [stepped(rank, None), stepped(rank, Communication(CPU)), stepped(rank, Communication(CPU, compressed=True))]


def stepped(rank: int, communication: Communication | None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(LAYERS)))
    learner: nn.Module = DistributedDataParallel(network, bucket_cap_mb=MEGABYTE_BUCKETS)
    learner = learner if communication is None else communication.watched(learner)
    x = torch.rand(8, SIDE, generator=torch.Generator().manual_seed(rank))

    def play() -> None:
        learner.zero_grad()
        learner(x).square().mean().backward()

    flop = step_cost(play).flop
    start = time.perf_counter()
    play()
    whole = time.perf_counter() - start
    gradients = {f"{name}": weight.grad for name, weight in network.named_parameters() if weight.grad is not None}
    sent = communication.read() if communication is not None else NOTHING
    again = communication.read() if communication is not None else NOTHING
    assert again == NOTHING
    figures = torch.tensor([*sent, whole, flop], dtype=torch.float64)
    return gradients | {"figures": figures}


def test_timed_all_reduces_average_as_ddp_does_and_know_their_bytes(tmp_path: Path) -> None:
    weights = LAYERS * SIDE * SIDE
    for plain, timed, compressed in on_two_ranks(reduced, tmp_path):
        for name, gradient in plain.items():
            if name != "figures":
                assert torch.equal(timed[name], gradient), name
                assert not torch.equal(compressed[name], gradient), name
                torch.testing.assert_close(compressed[name], gradient, rtol=2e-2, atol=1e-6)
        busy, exposed, sent, buckets, _, flop = timed["figures"].tolist()
        assert 0 < exposed <= busy
        assert sent == 2 * 4 * weights, "two steps in float32"
        assert 2 < buckets < 2 * LAYERS, "some hold more than one layer"
        assert compressed["figures"][2] == 2 * 2 * weights
        assert flop == LAYERS * linear(8, SIDE, SIDE, 3) - linear(8, SIDE, SIDE, 1) == plain["figures"][-1]


def test_a_learner_outside_ddp_sends_nothing() -> None:
    communication, learner = Communication(CPU), nn.Linear(2, 2)
    assert communication.watched(learner) is learner
    learner(torch.rand(1, 2)).sum().backward()
    assert communication.read() == NOTHING


def test_energy_is_what_the_counter_gained_since_the_last_reading() -> None:
    energy = Energy(iter([100.0, 130.0, 131.5]).__next__)
    assert energy.read() == 30.0
    assert energy.read() == 1.5
    assert energy_of(CPU).read() is None


def test_a_gpu_is_found_by_its_uuid_and_counts_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def energy(handle: str) -> int:
        if handle != "handle of GPU-1":
            raise NVMLError
        return 2500

    pynvml = ModuleType("pynvml")
    vars(pynvml).update(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}",
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    counter = nvml_counter("GPU-1")
    assert counter is not None and counter() == 2.5
    assert nvml_counter("GPU-2") is None, "one that does not count"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml_counter("GPU-1") is None, "no module"


def test_figures_of_one_rank() -> None:
    stretch = Stretch(4, 40, 2.0, {"data": 0.2, "forward": 0.6, "backward": 0.8, "update": 0.1})
    assert speed(stretch, Cost(3.0, 5.0), CEILINGS, None) == pytest.approx(
        {
            "speed/images_per_s": 20.0,
            "speed/step_s": 0.5,
            "speed/flop_per_image": 3.0,
            "speed/flop_per_s": 60.0,
            "speed/bytes_per_s": 100.0,
            "speed/share_of_matmul_ceiling": 0.6,
            "speed/share_of_copy_ceiling": 0.1,
            "speed/share_data": 0.1,
            "speed/share_forward": 0.3,
            "speed/share_backward": 0.4,
            "speed/share_update": 0.05,
            "speed/share_communication": 0.0,
            "speed/share_wait": 0.0,
            "speed/share_other": 0.15,
        }
    )


def test_figures_of_two_ranks_are_one_devices_beside_its_own_ceilings() -> None:
    phases = {"forward": 0.6, "backward": 0.8, "wait": 0.2}
    stretch = Stretch(4, 40, 2.0, phases, Sent(seconds=0.5, exposed=0.3, bytes=800, buckets=2), joules=50.0)
    figures = speed(stretch, Cost(3.0, 5.0), CEILINGS, torch.bfloat16, ranks=2)
    assert all(type(value) is float for value in figures.values()), "Ray refuses others"
    shares = {name: figures[f"speed/share_{name}"] for name in ("backward", "communication", "wait", "other")}
    assert shares == pytest.approx({"backward": 0.25, "communication": 0.15, "wait": 0.1, "other": 0.2})
    assert figures["speed/images_per_s"] == 20.0
    assert figures["speed/flop_per_s"] == 30.0
    assert figures["speed/share_of_matmul_ceiling"] == pytest.approx(30 / 400)
    assert figures["speed/share_communication_hidden"] == pytest.approx(0.1)
    assert figures["speed/gradient_bytes_per_step"] == 200.0
    assert figures["speed/joules_per_image"] == 2.5
    assert figures["speed/watts"] == 25.0
