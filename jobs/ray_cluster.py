"""The Ray a build runs on: joining or starting one, and what it has to give."""

import logging
import math
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import ray

from schemas.config import BuildConfig, RunConfig
from schemas.errors import ConfigError, TokenreelError

CONNECT_SECONDS = 10.0


def connect(run: RunConfig) -> bool:
    """Join the cluster at ``run.address`` or RAY_ADDRESS, or start one on this machine only.

    Returns:
        Whether one was started.

    Raises:
        TokenreelError: nothing answers at that address.
    """
    address = run.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        wanted = math.ceil(run.workers * run.cpus_per_worker)
        options |= {
            "num_cpus": max(wanted, os.cpu_count() or 1),
            "include_dashboard": False,
            "runtime_env": {"env_vars": {"PYTHONPATH": _import_path()}},
        }
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if address is not None:
            _require_reachable(address)
        ray.init(address=address or "local", **options)
    except (OSError, RuntimeError, ValueError) as error:
        source = "" if run.address else " (from RAY_ADDRESS)"
        raise TokenreelError(
            f"cannot use a Ray at address {address!r}{source}: {one_line(error)}. Is one running "
            "there (`ray start --head`)? One that asks for a token needs RAY_AUTH_MODE=token in "
            "this environment too. Without an address tokenreel starts one on this machine"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray's own handler aborts the process
    return address is None


def gpus_per_worker(config: BuildConfig) -> float:
    """What the settings say; without a word one GPU, or a share when workers outnumber them."""
    if config.run.gpus_per_worker is not None:
        return config.run.gpus_per_worker
    num_gpus = _cluster_resources().get("GPU", 0.0)
    return 0.0 if config.encoder.device == "cpu" else min(1.0, num_gpus / config.run.workers)


def require_resources(run: RunConfig, num_gpus: float, *, workers: int) -> None:
    """Raise ConfigError when so many workers can never run: Ray would wait without a word."""
    have = _cluster_resources()
    for name, each in (("CPU", run.cpus_per_worker), ("GPU", num_gpus)):
        wanted, found = each * workers, have.get(name, 0.0)
        if wanted > found + 1e-6:
            raise ConfigError(
                f"{workers} workers of {each:g} {name} each need {wanted:g}, the Ray cluster "
                f"has {found:g}; lower --workers or --{name.lower()}s-per-worker"
            )


def one_line(error: BaseException) -> str:
    """An error's text without Ray's line breaks."""
    return " ".join(str(error).split())[:300]


def _cluster_resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def _require_reachable(address: str) -> None:
    """Raise OSError unless something listens at host:port; Ray itself would try for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _import_path() -> str:
    """PYTHONPATH with which workers on this machine find the packages the driver runs from."""
    here = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
