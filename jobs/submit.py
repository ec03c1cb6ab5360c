"""A build as a job of a running Ray cluster, through the Ray Jobs API.

The cluster needs only the dependencies: these packages travel with the job. Corpus, cache and
checkpoint are paths that every node of the cluster sees.
"""

import importlib.util
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.dashboard import RAY_ERRORS, connect
from jobs.follow import SubmittedJob
from jobs.ray_cluster import one_line
from pipeline.corpus_lists import is_list
from pipeline.fusion import check_settings
from schemas.config import BuildConfig
from schemas.config_file import format_config
from schemas.errors import ConfigError, TokenreelError

SOURCE = ("jobs", "pipeline", "schemas", "tokenreel")
CONFIG_NAME = "build.toml"


def submit(
    address: str,
    sources: Sequence[str],
    location: str,
    config: BuildConfig,
    *,
    retry_failed: bool = False,
    limit: int | None = None,
    as_json: bool = False,
) -> SubmittedJob:
    """Start a build with these arguments as a job of the cluster at ``address``.

    Relative paths are made absolute; URIs and hub ids stay as they are.

    Raises:
        ConfigError: the address has no known form, or the settings name a cluster themselves.
        FusionError: the fusion method cannot do what is asked of it.
        TokenreelError: no Ray dashboard answers at the address, or it refuses the job.
    """
    if config.run.address is not None:
        raise ConfigError(
            f"run.address = {config.run.address!r} is not possible in a submitted build: its job "
            "finds its cluster without it; remove it from the --config file"
        )
    check_settings(config.fusion)
    client = connect(address)
    config = config.override("run", runner="ray")
    command = _command(sources, location, config, retry_failed=retry_failed, limit=limit)
    command += ["--json"] if as_json else []
    with tempfile.TemporaryDirectory(prefix="tokenreel-") as folder:
        _write_working_folder(Path(folder), config)
        try:
            job_id = client.submit_job(
                entrypoint=shlex.join(command), runtime_env={"working_dir": folder}
            )
        except RAY_ERRORS as error:
            raise TokenreelError(
                f"the cluster at {client.get_address()} did not take the job: {one_line(error)}"
            ) from error
    return SubmittedJob(client, job_id)


def _command(
    sources: Sequence[str],
    location: str,
    config: BuildConfig,
    *,
    retry_failed: bool,
    limit: int | None,
) -> list[str]:
    """What runs in the job; settings come from the file beside it, the model is shown."""
    model = config.encoder.model
    if Path(model).is_dir():
        model = str(Path(model).absolute())
    command = ["python", "-m", "jobs", "build", *map(_absolute, sources)]
    command += ["--out", _absolute(location), "--model", model]
    command += ["--runner", "ray", "--config", CONFIG_NAME]
    command += ["--limit", str(limit)] if limit is not None else []
    command += ["--retry-failed"] if retry_failed else []
    return command


def _absolute(source: str) -> str:
    """A path as the nodes are to read it; a URI stays as it is, and so does nothing at all."""
    if is_list(source):
        return f"@{_absolute(source.removeprefix('@'))}"
    return source if not source or "://" in source else str(Path(source).absolute())


def _write_working_folder(folder: Path, config: BuildConfig) -> None:
    """Put our packages, from wherever they are imported, and the settings into ``folder``."""
    for name in SOURCE:
        spec = importlib.util.find_spec(name)
        assert spec is not None, f"{name} is part of this program"
        assert spec.origin is not None, f"{name} is no namespace package"
        origin = Path(spec.origin)
        if spec.submodule_search_locations is None:
            shutil.copy(origin, folder)
        else:
            no_caches = shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin.parent, folder / name, ignore=no_caches)
    settings = format_config(config.override("encoder", model=""))
    (folder / CONFIG_NAME).write_text(settings, encoding="utf-8")
