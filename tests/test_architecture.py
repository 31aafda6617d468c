"""Who may import whom: the design, held by reading the source."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
RAY = re.compile(r"pipeline/(cluster|training/(launch|worker)|tuning/|data/prepare|batch|submit|evaluation)")
MLFLOW = re.compile(r"pipeline/(tracking|registry)")


def imported(source: str) -> Iterator[str]:
    """Every module that a source imports, at its top or inside a function, under its whole dotted name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(*packages: str) -> Iterator[tuple[str, str]]:
    """(path from the root, module) of every import in these packages."""
    for package in packages:
        files = sorted((ROOT / package).rglob("*.py"))
        assert files, package
        for file in files:
            for module in imported(file.read_text()):
                yield file.relative_to(ROOT).as_posix(), module


def top(module: str) -> str:
    return module.partition(".")[0]


def test_the_reader_of_imports_sees_them_all() -> None:
    source = "import a.b\nif 1:\n    from c import d\ndef f():\n    import e as g, h\n"
    assert sorted(imported(source)) == ["a.b", "c.d", "e", "h"]


def test_vaegan_imports_only_torch() -> None:
    allowed = {"torch", "vaegan"} | set(sys.stdlib_module_names)
    assert [found for found in imports("vaegan") if top(found[1]) not in allowed] == []


def test_vaegan_touches_no_file_clock_or_rank() -> None:
    world = re.compile(
        r"(os|io|pathlib|shutil|tempfile|time|datetime|socket|subprocess|logging|torch\.distributed"
        r"|torch\.nn\.parallel)(\.|$)"
    )
    assert [found for found in imports("vaegan") if world.match(found[1])] == []


def test_vaegan_config_loads_no_torch() -> None:
    loaded = "import sys, vaegan.config; print('torch' in sys.modules, 'vaegan.config' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "True"]


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "ray", "mlflow", "pyarrow", "numpy", "pandas", "pydantic", "ruamel"}
    script = "import atexit, sys; atexit.register(lambda: print(sorted({m.partition('.')[0] for m in sys.modules})))"
    script += "; from pipeline.cli import main; main(['--help'])"
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(told.stdout.splitlines()[-1]))
    assert "pipeline" in loaded and "usage: vaegan" in told.stdout
    assert loaded & heavy == set()


def test_nothing_of_ours_pickles() -> None:
    assert [found for found in imports("vaegan", "pipeline") if top(found[1]) in PICKLES] == []


@pytest.mark.parametrize(("library", "homes"), [("ray", RAY), ("mlflow", MLFLOW)])
def test_a_library_is_imported_only_at_its_homes(library: str, homes: re.Pattern[str]) -> None:
    found = [(path, module) for path, module in imports("vaegan", "pipeline") if top(module) == library]
    assert [(path, module) for path, module in found if not homes.match(path)] == []
