"""Builds as jobs of a Ray head on this machine whose Python has the dependencies only."""

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.request
import venv
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from jobs.cli import cli
from pipeline.cache import open_cache
from pipeline.decode.clips import write_scene_clip
from pipeline.storage import open_storage
from pipeline.store.manifest import read_manifest
from tests.synthetic import REPOSITORY

follow = pytest.importorskip("jobs.follow", reason="needs ray")

pytestmark = pytest.mark.ray

START_SECONDS = 90.0
JOB_SECONDS = 240.0
TOKEN = "0123456789abcdef" * 4

PORTS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port",
    "--metrics-export-port",
    "--ray-client-server-port",
)


@dataclass(frozen=True)
class Head:
    """A running Ray head that asks for a token, and the environment of its users."""

    address: str
    environment: dict[str, str]

    def ask(self, path, method="GET"):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        request = urllib.request.Request(self.address + path, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def status(self, job_id):
        return self.ask(f"/api/jobs/{job_id}")["status"]

    def stop(self, job_id):
        wait_for(lambda: self.status(job_id) != "PENDING", JOB_SECONDS)
        self.ask(f"/api/jobs/{job_id}/stop", method="POST")

    def start_submit(self, cwd, *arguments, address=None):
        return start(
            [sys.executable, "-m", "jobs", "submit", address or self.address, *arguments],
            cwd,
            self.environment | {"PYTHONPATH": str(REPOSITORY)},
        )


def start(command, cwd, environment):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, command)], cwd=cwd, env=environment, **pipes)


def finish(process):
    stdout, stderr = process.communicate(timeout=JOB_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds} s: {condition}"
        time.sleep(0.1)


def clean_environment():
    """Ours without what leads to another Ray, or the head to this checkout."""
    foreign = ("RAY_", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python that imports the dependencies from where they are, and not this project.

    Its ``.pth`` names their folder; the ``.pth`` files inside that folder, such as the one of an
    editable install, are not read.
    """
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    base = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", vars=base))
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = Path(sysconfig.get_path("scripts", vars=base)) / "python"
    code = "import ray\nfrom importlib.util import find_spec\nprint(find_spec('jobs'))"
    seen = finish(start([python, "-c", code], folder, clean_environment()))
    assert seen.stdout == "None\n", f"the head would import an installed tokenreel: {seen}"
    return python


@pytest.fixture(scope="module")
def head(bare_python):
    with tempfile.TemporaryDirectory(prefix="ray-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "token").write_text(TOKEN)
        of_users = clean_environment() | {"RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        path = os.pathsep.join([str(bare_python.parent), of_users["PATH"]])
        of_head = of_users | {"RAY_AUTH_MODE": "token", "PATH": path, "OMP_NUM_THREADS": "1"}
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        command = [bare_python, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1"]
        command += ["--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"]
        command += ["--num-cpus=8", "--object-store-memory=100000000", "--disable-usage-stats"]
        command += [f"--temp-dir={folder}/ray", *(f"{name}={port}" for name, port in ports.items())]
        log = stack.enter_context((folder / "log").open("w+"))
        process = subprocess.Popen(
            command, cwd=folder, env=of_head, stdout=log, stderr=log, start_new_session=True
        )
        stack.callback(end_session, process)
        wait_for(lambda: has_started(process, folder / "log"), START_SECONDS)
        yield Head(f"http://127.0.0.1:{ports['--dashboard-port']}", of_users)


def free_ports(number):
    with contextlib.ExitStack() as stack:
        servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
        return [stack.enter_context(server).getsockname()[1] for server in servers]


def has_started(process, log):
    text = log.read_text(errors="replace")
    assert process.poll() is None, f"the Ray head ended: {text}"
    return "Ray runtime started" in text


def end_session(process):
    """End a head by the signal that ends its processes, and what is left of its session."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class BreakingProxy:
    """Stands before a dashboard and cuts the first log stream after its first line."""

    def __init__(self, address):
        self._target = urlsplit(address).hostname, urlsplit(address).port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.num_streams = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._server.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client):
        with client, socket.create_connection(self._target) as target:
            request = client.recv(65536)
            is_stream = b"/logs/tail" in request.split(b"\r\n")[0]
            self.num_streams += is_stream
            cut_after = b"Running entrypoint" if is_stream and self.num_streams == 1 else None
            target.sendall(request)
            back = threading.Thread(target=pump, args=[target, client, cut_after], daemon=True)
            back.start()
            pump(client, target)
            back.join()


def pump(source, sink, cut_after=None):
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            sink.sendall(chunk)
            if cut_after and cut_after in chunk:
                break
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_checkpoint):
    """A folder with a corpus of 3 clips, another with a broken file, a model and settings."""
    folder = tmp_path_factory.mktemp("place")
    for name, number in (("videos", 3), ("damaged", 1)):
        (folder / name).mkdir()
        for seed in range(number):
            clip = folder / name / f"{seed}.mp4"
            write_scene_clip(clip, seed=seed, seconds=2.0, width=128, height=96, fps=12)
    (folder / "damaged" / "broken.mp4").write_bytes(bytes(range(256)) * 10)
    (folder / "model").symlink_to(tiny_checkpoint)
    (folder / "build.toml").write_text("[sampling]\nfps = 4\n[encoder]\ndevice = 'cpu'\n")
    return folder


@pytest.fixture(scope="module")
def runs(head, place):
    """Four jobs that run at the same time, each to its end."""
    proxy = BreakingProxy(head.address)
    whole = ["videos", "--out", "whole", "--model", "model", "--config", "build.toml", "--json"]
    damaged = ["damaged", "--out", "damaged-cache", "--model", "model", "--device", "cpu"]
    no_model = ["videos", "--out", "none", "--model", "videos", "--device", "cpu"]
    by_ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit"]
    by_ray += ["--address", head.address, "--working-dir", ".", "--", "python", "-m", "jobs"]
    by_ray += ["build", place / "videos", "--out", place / "by-ray", "--model", place / "model"]
    by_ray += ["--device", "cpu", "--runner", "ray"]
    started = {
        "whole": head.start_submit(place, *whole),
        "damaged": head.start_submit(place, *damaged, address=proxy.address),
        "no model": head.start_submit(place, *no_model),
        "by ray": start(by_ray, REPOSITORY, head.environment | {"RAY_AUTH_MODE": "token"}),
    }
    with contextlib.closing(proxy):
        finished = {name: finish(process) for name, process in started.items()}
    return finished, proxy.num_streams


def test_a_submitted_build_ends_with_exit_code_0_and_a_complete_cache(runs, place):
    assert runs[0]["whole"].returncode == 0, runs[0]["whole"].stderr
    cache = open_cache(place / "whole")
    assert list(cache.ids()) == ["0.mp4", "1.mp4", "2.mp4"]
    for name in cache.ids():
        assert cache.load(name).num_tokens > 0


def test_the_config_file_of_this_machine_travels_with_the_job(runs, place):
    assert read_manifest(open_storage(place / "whole")).sampling.fps == 4.0


def test_the_job_gets_absolute_paths(runs, place):
    command = f"python -m jobs build {place}/videos --out {place}/whole --model {place}/model "
    assert command in runs[0]["whole"].stderr


def test_the_first_line_names_the_job(runs):
    assert runs[0]["whole"].stderr.startswith("job raysubmit_")


def test_stdout_is_the_summary_of_the_job_and_nothing_else(runs, place):
    [line] = runs[0]["whole"].stdout.splitlines()
    summary = json.loads(line)
    assert (summary["event"], summary["done"], summary["exit_code"]) == ("summary", 3, 0)
    assert summary["cache"] == str(place / "whole")


def test_failures_inside_the_budget_end_with_exit_code_3(runs, place):
    finished = runs[0]["damaged"]
    assert (finished.returncode, finished.stdout) == (3, "")
    assert "failed broken.mp4: [unreadable]" in finished.stderr
    assert open_cache(place / "damaged-cache").row("broken.mp4").status == "failed"


def test_a_log_stream_that_breaks_is_taken_up_again_where_it_was(runs):
    finished, num_streams = runs
    assert num_streams >= 2
    assert finished["damaged"].stderr.count("Running entrypoint") == 1
    assert finished["damaged"].stderr.count("done 1/2 videos") == 1


def test_a_model_that_cannot_be_loaded_ends_with_exit_code_1_and_its_own_message(runs, place):
    finished = runs[0]["no model"]
    assert (finished.returncode, finished.stdout) == (1, "")
    assert f"error: model directory '{place}/videos' has no config.json" in finished.stderr


def test_ray_job_submit_of_the_checkout_needs_the_dependencies_only(runs, place):
    assert runs[0]["by ray"].returncode == 0, runs[0]["by ray"].stdout + runs[0]["by ray"].stderr
    assert len(list(open_cache(place / "by-ray").ids())) == 3


def test_without_waiting_the_job_id_is_on_stdout(head, place):
    job = ["videos", "--out", "n", "--model", "model", "--no-wait"]
    finished = finish(head.start_submit(place, *job))
    job_id = finished.stdout.strip()
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "python -m jobs build" in head.ask(f"/api/jobs/{job_id}")["entrypoint"]
    head.stop(job_id)


def test_ctrl_c_ends_the_following_and_a_stop_ends_the_job(head, place):
    job = ["videos", "--out", "i", "--model", "model", "--device", "cpu"]
    process = head.start_submit(place, *job)
    job_id = process.stderr.readline().split()[1]
    process.send_signal(signal.SIGINT)
    finished = finish(process)
    assert finished.returncode == 130
    assert f"stop it with `ray job stop --address {head.address} {job_id}`" in finished.stderr
    assert head.status(job_id) in ("PENDING", "RUNNING")
    head.stop(job_id)


def test_a_job_that_is_stopped_ends_with_exit_code_1(head, place):
    process = head.start_submit(place, "videos", "--out", "s", "--model", "model")
    job_id = process.stderr.readline().split()[1]
    head.stop(job_id)
    finished = finish(process)
    assert finished.returncode == 1
    assert f"error: job {job_id} was stopped" in finished.stderr


def test_a_cluster_that_asks_for_a_token_refuses_a_user_without_one(head, place, tmp_path):
    nobody = Head(head.address, head.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})
    refused = finish(nobody.start_submit(place, "videos", "--out", "c", "--model", "model"))
    assert_one_error(refused, "Authentication required")


def test_where_nothing_listens_there_is_one_clear_error(place):
    [port] = free_ports(1)
    nowhere = Head(f"http://127.0.0.1:{port}", clean_environment())
    refused = finish(nowhere.start_submit(place, "videos", "--out", "c", "--model", "model"))
    assert_one_error(refused, f"cannot use a Ray dashboard at http://127.0.0.1:{port}")


def test_the_address_that_was_typed_beats_the_environment_and_auto_asks_it(head, place):
    [port] = free_ports(1)
    nowhere = f"http://127.0.0.1:{port}"
    job = ["videos", "--out", "c", "--model", "model"]
    to_head = Head(nowhere, head.environment | {"RAY_API_SERVER_ADDRESS": head.address})
    assert_one_error(finish(to_head.start_submit(place, *job)), f"dashboard at {nowhere}: ")
    to_nowhere = Head("auto", head.environment | {"RAY_API_SERVER_ADDRESS": nowhere})
    assert_one_error(finish(to_nowhere.start_submit(place, *job)), f"Ray at address: {nowhere}")


def test_a_server_that_is_no_dashboard_gives_one_clear_error(place):
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        other = Head(f"127.0.0.1:{server.server_port}", clean_environment())
        refused = finish(other.start_submit(place, "videos", "--out", "c", "--model", "model"))
        server.shutdown()
    assert_one_error(
        refused, f"cannot use a Ray dashboard at http://127.0.0.1:{server.server_port}"
    )


def test_a_server_that_never_answers_is_given_up_soon(place):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        other = Head(f"127.0.0.1:{silent.getsockname()[1]}", clean_environment())
        refused = finish(other.start_submit(place, "videos", "--out", "c", "--model", "model"))
    assert_one_error(refused, "no answer within 10 s")


def assert_one_error(finished, message):
    assert (finished.returncode, finished.stdout) == (1, "")
    assert len(finished.stderr.splitlines()) == 1
    assert finished.stderr.startswith("error: ")
    assert message in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--model", "m", "--runner", "local"], 2, "leave --runner out"),
        (["--model", "m", "--address", "auto"], 2, "leave --address out"),
        ([], 2, "Missing option '--model'"),
        (["--model", "m", "--threshold", "7"], 1, "fusion.threshold = 7.0"),
        (["--model", "m", "--config", "none.toml"], 1, "cannot read config file none.toml"),
        (["--model", "m", "--config", "{here}/address.toml"], 1, "run.address = 'auto'"),
    ],
    ids=str,
)
def test_settings_are_checked_before_the_cluster_is_asked(tmp_path, arguments, exit_code, message):
    (tmp_path / "address.toml").write_text("[run]\nrunner = 'ray'\naddress = 'auto'\n")
    arguments = [argument.format(here=tmp_path) for argument in arguments]
    result = CliRunner().invoke(cli, ["submit", "nowhere:1", "videos", "--out", "c", *arguments])
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr


@pytest.mark.parametrize("address", ["videos", "ray://head:10001", "head"])
def test_what_is_no_address_of_a_dashboard_is_refused(address):
    result = CliRunner().invoke(cli, ["submit", address, "videos", "--out", "c", "--model", "m"])
    assert result.exit_code == 1
    assert f"error: {address!r} is not the address of a cluster" in result.stderr


def test_a_log_read_again_shows_each_line_once_wherever_it_broke_off():
    log = "one\ntwo\nthree\n\nfive"
    for first in range(len(log) + 1):
        shown = []
        lines = follow.LogLines(shown.append)
        lines.feed(log[:first])
        lines.rewind()
        for letter in log:
            lines.feed(letter)
        lines.close()
        assert shown == ["one", "two", "three", "", "five"]


def test_the_summary_is_found_in_a_line_that_holds_more():
    summary = '{"event": "summary", "done": 3}'
    assert follow.find_summary(f"a word {summary} and more") == summary
    assert follow.find_summary('{"event": "video"}') is None
    assert follow.find_summary('{"event": "summary", "done"') is None
