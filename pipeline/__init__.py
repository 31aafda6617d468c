"""Everything that touches the world: data, Ray, MLflow, files, and the `vaegan` command."""
