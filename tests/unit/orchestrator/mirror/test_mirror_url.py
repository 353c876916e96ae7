"""`run.mirror=URL`: what is refused before anything starts, and real back ends behind it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.mirrors import ALL, files_of, forever, made_folder, save

from orchestrator.config.ranges import check_tree
from orchestrator.config.run import RunConfig
from orchestrator.mirror.background import Mirror
from orchestrator.mirror.claim import find_claim
from orchestrator.mirror.connect import connect
from orchestrator.mirror.pruning import Keep
from orchestrator.mirror.restoring import restore
from orchestrator.mirror.store import Store
from orchestrator.run_files.folder import RunFolder
from workers.errors import BrokenCheckpointError, ConfigError, MirrorError, RehearsalError


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/mnt/x", "no plain URL"), ("s3://", "no plain URL"), ("S3://x", "no plain URL"),
        ("s3:// x", "no plain URL"), ("s3:////", "no plain URL"), ("s3://a?b", "no plain URL"),
        ("simplecache::s3://bucket/x", "no plain URL"), ("s3://bucket/../x", "holds . or .."),
        ("memory://x", "ends with the run"), ("file://mnt/x", "no absolute path"),
        ("ftp://me:secret@host/x", "password"), ("s3://bucket/\n", "control character"),
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_is_refused_without_showing_it(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_tree(RunConfig(mirror=url), "run")
    assert caught.value.where == "run.mirror"
    assert "secret" not in str(caught.value)


def test_usual_urls_are_accepted() -> None:
    for url in ("s3://bucket", "s3://bucket/a/b/", "gs://b/x", "file:///mnt/x", "ftp://me@host/x"):
        check_tree(RunConfig(mirror=url), "run")


def test_unknown_protocols_and_missing_drivers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nosuch is no protocol"):
        connect(RunConfig(mirror="nosuch://x/y"))
    with pytest.raises(ConfigError, match="gcsfs") as caught:
        connect(RunConfig(mirror="gs://bucket/x"))
    assert caught.value.fix == "uv pip install -e '.[gcs]'"


def test_a_local_mirror_is_neither_the_run_folder_nor_an_unmounted_disk(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    for place in (run, f"{run}/inside", str(tmp_path)):
        with pytest.raises(ConfigError, match="one in the other"):
            connect(RunConfig(dir=run, mirror=f"file://{place}"))
    with pytest.raises(MirrorError, match="there is no folder"):
        connect(RunConfig(dir=run, mirror=f"file://{tmp_path}/not-mounted/mirror"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RehearsalError):
        connect(RunConfig(dir=run, mirror=f"file://{tmp_path}/file/mirror"))


def there_and_back(config: RunConfig, path: Path) -> None:
    """Copy, prune and restore with a real back end."""
    folder = made_folder(path / "run")
    store = connect(config)
    mirror = Mirror(store, folder, find_claim(store, folder, ""))
    mirror.begin()
    for step in range(1, 4):
        mirror.submit(save(folder, step, os.urandom(3 << 20)), Keep(1, 0, frozenset()))
        mirror.finish(forever)
    assert mirror.totals().failures == 0
    assert mirror.names == ("000003-ppo-3",)
    store = connect(config)
    assert store.entries("copies") == ["000003-ppo-3"]
    elsewhere = RunFolder(path / "elsewhere")
    elsewhere.path.mkdir()
    restore(store, elsewhere, find_claim(store, elsewhere, "auto"))
    wanted = files_of(folder)
    own = {n for n in wanted if n.startswith("state/") and not n.startswith("state/000003")}
    assert files_of(elsewhere) == {n: data for n, data in wanted.items() if n not in own}


def test_a_folder_on_another_disk_is_a_mirror(tmp_path: Path) -> None:
    config = RunConfig(dir=str(tmp_path / "run"), mirror=f"file://{tmp_path}/mirror")
    there_and_back(config, tmp_path)
    assert sorted(p.name for p in (tmp_path / "mirror").iterdir()) == [
        "copies", "identity.json", "models", "writer.json",
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["leaf", "folder"])
def test_links_in_a_shared_folder_are_not_followed(tmp_path: Path, where: str) -> None:
    config = RunConfig(dir=str(tmp_path / "run"), mirror=f"file://{tmp_path}/mirror")
    folder, store = made_folder(tmp_path / "run"), connect(config)
    mirror = Mirror(store, folder, find_claim(store, folder, ""))
    mirror.begin()
    mirror.submit(save(folder, 1), ALL)
    mirror.finish(forever)
    copy = tmp_path / "mirror" / "copies" / "000001-ppo-1"
    moved = copy / "metrics.jsonl" if where == "leaf" else copy
    moved.rename(tmp_path / "outside")
    moved.symlink_to(tmp_path / "outside")
    elsewhere = RunFolder(tmp_path / "elsewhere").create()
    store = connect(config)
    with pytest.raises(BrokenCheckpointError, match="it is a link"):
        restore(store, elsewhere, find_claim(store, elsewhere, "auto"))


def test_a_mirror_that_does_not_answer_is_refused_in_time() -> None:
    def hang() -> Any:
        time.sleep(3)

    started = time.monotonic()
    with pytest.raises(MirrorError, match=r"did not answer within 0\.1 s"):
        Store(hang, "/x", "s3://bucket/x", 0.1).write("probe", b"x")
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError("denied"), "refuses access: denied"),
        (FileNotFoundError("The specified bucket does not exist"), "is not there: The specified"),
        (type("NoCredentialsError", (Exception,), {})("none"), "refuses access"),
        (OSError(113, "No route to host"), "cannot be written: No route to host"),
        (KeyError("x"), "cannot be written"),
    ],
)
def test_each_kind_of_failure_has_a_type_and_a_fix(error: Exception, said: str) -> None:
    def fail() -> Any:
        raise error

    with pytest.raises(MirrorError, match=said) as caught:
        Store(fail, "/x", "s3://bucket/x", 5.0).write("probe", b"x")
    assert caught.value.fix
    assert caught.value.where == "s3://bucket/x/probe"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A local server with the interface of S3 and one bucket."""
    server = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        running.start()
        endpoint = "http://{}:{}".format(*running.get_host_and_port())
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield endpoint
        running.stop()


def test_a_bucket_is_a_mirror(tmp_path: Path, s3: str) -> None:
    config = RunConfig(dir=str(tmp_path / "run"), mirror="s3://bucket/runs/one")
    there_and_back(config, tmp_path)


def test_a_wrong_bucket_is_refused_and_not_made(tmp_path: Path, s3: str) -> None:
    import boto3

    with pytest.raises(MirrorError, match="is not there") as caught:
        connect(RunConfig(dir=str(tmp_path / "run"), mirror="s3://wrong/runs/one"))
    assert "check the bucket" in caught.value.fix
    assert [each["Name"] for each in boto3.client("s3").list_buckets()["Buckets"]] == ["bucket"]


def test_an_endpoint_where_nothing_listens_is_refused(
    tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(MirrorError, match=r"cannot be written|did not answer"):
        connect(RunConfig(dir=str(tmp_path / "run"), mirror="s3://bucket/x", mirror_seconds=5.0))


def test_the_deadline_of_a_call_is_that_of_the_configuration(tmp_path: Path) -> None:
    config = RunConfig(dir=str(tmp_path / "run"), mirror=f"file://{tmp_path}/m", mirror_seconds=7.5)
    assert connect(config)._seconds == 7.5
