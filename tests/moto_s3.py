"""A mock of S3 (moto) in a process of its own; it shows that the protocol is spoken, no more."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import boto3

BUCKET = "bucket"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


class MotoS3:
    """A running server.

    Attributes:
        environment: variables by which clients find it.
    """

    def __init__(self, port: int):
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.client = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )

    def empty(self) -> None:
        """Begin with an empty bucket."""
        with contextlib.suppress(self.client.exceptions.NoSuchBucket):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
            for found in (entry for page in pages for entry in page.get("Contents", ())):
                self.client.delete_object(Bucket=BUCKET, Key=found["Key"])
            self.client.delete_bucket(Bucket=BUCKET)
        self.client.create_bucket(Bucket=BUCKET)

    def objects(self) -> dict[str, bytes]:
        """Return the content of every object."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        names = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return {n: self.client.get_object(Bucket=BUCKET, Key=n)["Body"].read() for n in names}


@contextlib.contextmanager
def running() -> Iterator[MotoS3]:
    """Start a server, and end it with the block."""
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield MotoS3(port)
    finally:
        process.kill()
        process.wait()
