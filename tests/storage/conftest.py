"""A bucket of an S3 server on loopback, in a process of its own."""

import subprocess
import sys
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, and what was asked of its server."""

    url: str
    log: Path

    def requests(self) -> list[str]:
        """Each request as ``METHOD path range``, those to this bucket."""
        name = self.url.rpartition("/")[2]
        return [line for line in self.log.read_text().splitlines() if f"/{name}" in line]

    def fail_next(self, count: int) -> None:
        """Answer the next requests with 503."""
        Path(f"{self.log}.faults").write_text(str(count))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    log = tmp_path_factory.mktemp("s3") / "requests"
    log.touch()
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.storage.s3_server", str(log)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    try:
        yield server.stdout.readline().strip(), log
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(s3_server, monkeypatch) -> Bucket:
    endpoint, log = s3_server
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    name = f"b-{uuid.uuid4().hex}"
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/x")
    assert urllib.request.urlopen(request).status == 200
    return Bucket(f"s3://{name}", log)
