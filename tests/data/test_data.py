import functools
import gzip
import hashlib
import http.server
import io
import os
import pathlib
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest

from hgrad_jax.data import (
    Dataset,
    DataUnavailableError,
    cifar10,
    load,
    load_cifar10,
    load_cifar10_subset,
    load_digits,
    load_mnist,
    load_penguins,
    mnist,
    split,
)
from hgrad_jax.data.originals import DATA_DIR_VARIABLE, OriginalFile, Source, fetch

# The originals, where somebody has put them: named by the variable, or beside the repository.
BESIDE = pathlib.Path(__file__).parents[3] / "shared" / "data"
ORIGINALS = pathlib.Path(os.environ.get(DATA_DIR_VARIABLE) or BESIDE)


def needs(path):
    return pytest.mark.skipif(
        not (ORIGINALS / path).is_file(),
        reason=f"{path} is not in {DATA_DIR_VARIABLE}; synthetic files test the same code",
    )


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache, and no folder from the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    return tmp_path / "cache" / "hgrad_jax"


@pytest.fixture
def closed_url():
    """An address at which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    return f"http://127.0.0.1:{port}/"


@pytest.fixture
def server(tmp_path):
    """A folder, and the address of a server that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):  # noqa: A002
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()


def make_source(base_url, **files):
    """A source called tiny whose files, written `name_txt`, hold the given bytes."""
    originals = (
        OriginalFile(name.replace("_", "."), hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    )
    return Source("tiny", "tiny-folder", base_url, tuple(originals))


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def sums_of(source, folder):
    """The source with the sums of the files in a folder."""
    return source._replace(
        files=tuple(
            OriginalFile(f.name, hashlib.sha256((folder / f.name).read_bytes()).hexdigest())
            for f in source.files
        )
    )


class TestEmbedded:
    def test_digits(self):
        inputs, labels = load_digits()
        assert (inputs.shape, inputs.dtype) == ((1797, 64), np.float32)
        assert (labels.shape, labels.dtype) == ((1797,), np.int32)
        assert labels[:10].tolist() == list(range(10))
        counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
        assert np.bincount(labels).tolist() == counts
        assert (inputs.min(), inputs.max()) == (0, 1)
        first_row = [0, 0, 5, 13, 9, 1, 0, 0]
        assert (16 * inputs[0, :8]).tolist() == first_row

    def test_penguins(self):
        inputs, labels = load_penguins()
        assert (inputs.shape, inputs.dtype, labels.dtype) == ((342, 4), np.float32, np.int32)
        np.testing.assert_allclose(
            inputs.mean(0, dtype=np.float64), [43.9219, 17.1512, 200.9152, 4201.7544], atol=1e-4
        )
        # One Adelie and one Gentoo of 152, 68 and 124 lack measurements.
        assert np.bincount(labels).tolist() == [151, 68, 123]


class TestSplit:
    DATA = Dataset(np.arange(20.0).reshape(10, 2), np.arange(10))

    def test_parts_are_disjoint_and_rows_stay_together(self):
        parts = split(self.DATA, (5, 3, 2), seed=0)
        assert [len(part.labels) for part in parts] == [5, 3, 2]
        labels = np.concatenate([part.labels for part in parts])
        assert sorted(labels) == list(range(10))
        for part in parts:
            np.testing.assert_array_equal(part.inputs[:, 0], 2 * part.labels)

    def test_the_seed_decides(self):
        (first,), (again,), (other,) = (split(self.DATA, (8,), seed=s) for s in (0, 0, 1))
        np.testing.assert_array_equal(first.labels, again.labels)
        assert not np.array_equal(first.labels, other.labels)
        # RandomState(0)'s permutation of ten is the same for ever.
        assert first.labels.tolist() == [2, 8, 4, 9, 1, 6, 7, 3]

    def test_fractions_leave_none_out(self):
        parts = split(self.DATA, (1 / 3, 1 / 3, 1 / 3), seed=0)
        assert [len(part.labels) for part in parts] == [3, 4, 3]
        (half,) = split(self.DATA, (0.5,), seed=0)
        assert len(half.labels) == 5

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ((8, 3), "sum to 11, but there are 10 examples"),
            ((0.8, 0.3), r"sum to 1\.1, which is more than 1"),
            ((5, 0.5), "all integers or all fractions"),
            ((), "all integers or all fractions"),
            ((5, 0), "must be positive"),
            ((-0.5,), "must be positive"),
        ],
    )
    def test_impossible_sizes(self, sizes, message):
        with pytest.raises(ValueError, match=message):
            split(self.DATA, sizes, seed=0)

    @pytest.mark.parametrize("sizes", [2, None, "ab", (True,)])
    def test_what_is_no_sizes(self, sizes):
        with pytest.raises(ValueError, match=r"sizes is .*; it must be a sequence of numbers of"):
            split(self.DATA, sizes, seed=0)

    @pytest.mark.parametrize("seed", [None, "a", -1, 2**32, 0.5])
    def test_a_seed_that_is_none(self, seed):
        """None would draw another division each time."""
        with pytest.raises(ValueError, match=r"seed is .*; it must be an int with 0 <= seed"):
            split(self.DATA, (5,), seed=seed)


class TestLoad:
    @pytest.mark.parametrize(("name", "sizes"), [("digits", (1438, 359)), ("penguins", (274, 68))])
    def test_embedded_sets_are_divided(self, name, sizes):
        train, test = load(name)
        assert (len(train.labels), len(test.labels)) == sizes

    def test_unknown_names_are_answered_with_the_known_ones(self):
        known = "digits, penguins, mnist, cifar10, cifar10_subset, usps"
        with pytest.raises(ValueError, match=f"no data set 'minst': the known ones are {known}"):
            load("minst")

    @pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar10_subset", "usps"])
    def test_arguments_reach_the_loader(self, name, tmp_path):
        with pytest.raises(DataUnavailableError, match=f"{name}: there is no .*{tmp_path}"):
            load(name, data_dir=tmp_path, download=False)


class TestFetch:
    def test_folder_subfolder_and_variable(self, tmp_path, monkeypatch):
        source = make_source(None, a_txt=b"A", b_txt=b"B")
        given = tmp_path / "given"
        (given / "tiny-folder").mkdir(parents=True)
        (given / "a.txt").write_bytes(b"A")
        (given / "tiny-folder" / "b.txt").write_bytes(b"B")
        want = [given / "a.txt", given / "tiny-folder" / "b.txt"]
        assert fetch(source, data_dir=given) == want
        monkeypatch.setenv(DATA_DIR_VARIABLE, str(given))
        assert fetch(source) == want

    @pytest.mark.parametrize("base_url", [None, "http://127.0.0.1:1/"])
    def test_damaged_file(self, tmp_path, base_url):
        (tmp_path / "a.txt").write_bytes(b"a")
        remedy = "delete it, and load again" if base_url else "put the original in its place"
        got, want = (hashlib.sha256(x).hexdigest() for x in (b"a", b"A"))
        message = rf"tiny: {tmp_path}/a\.txt is damaged, its sha256 is {got} and not {want}: "
        with pytest.raises(DataUnavailableError, match=message + remedy):
            fetch(make_source(base_url, a_txt=b"A"), data_dir=tmp_path)

    def test_no_folder(self, tmp_path, monkeypatch):
        source = make_source(None, a_txt=b"A")
        with pytest.raises(DataUnavailableError, match=r"data_dir is .*nowhere, which is not"):
            fetch(source, data_dir=tmp_path / "nowhere")
        monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "gone"))
        with pytest.raises(DataUnavailableError, match=f"{DATA_DIR_VARIABLE} is .*gone, which is"):
            fetch(source)

    def test_download_not_allowed(self, closed_url):
        message = r"no a\.txt in .*tiny-folder, and download=False: allow the download, or put"
        with pytest.raises(DataUnavailableError, match=message):
            fetch(make_source(closed_url, a_txt=b"A"), download=False)

    def test_no_download_exists(self):
        message = r"no a\.txt in .*tiny-folder, and it cannot be downloaded: put a\.txt into a fold"
        with pytest.raises(DataUnavailableError, match=message):
            fetch(make_source(None, a_txt=b"A"))

    def test_no_network_fails_within_seconds(self, closed_url):
        start = time.monotonic()
        message = rf"{closed_url} does not answer: check the network, or put a\.txt, b\.txt into"
        with pytest.raises(DataUnavailableError, match=message):
            fetch(make_source(closed_url, a_txt=b"A", b_txt=b"B"))
        assert time.monotonic() - start < 20  # unprobed it would be 205 s

    def test_a_host_that_never_answers_is_given_up(self, monkeypatch):
        monkeypatch.setattr("hgrad_jax.data.originals.PROBE_SECONDS", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as mute:
            url = f"http://127.0.0.1:{mute.getsockname()[1]}/"
            with pytest.raises(DataUnavailableError, match="does not answer"):
                fetch(make_source(url, a_txt=b"A"))

    def test_download_once_then_the_cache(self, server, cache, closed_url):
        folder, url = server
        (folder / "a.txt").write_bytes(b"A")
        (folder / "b.txt").write_bytes(b"B")
        source = make_source(url, a_txt=b"A", b_txt=b"B")
        paths = fetch(source)
        assert [path.read_bytes() for path in paths] == [b"A", b"B"]
        # Under their own names, and nothing else is left.
        assert sorted(cache.rglob("*")) == sorted([cache / "tiny-folder", *paths])
        assert [path.name for path in paths] == ["a.txt", "b.txt"]
        assert fetch(source._replace(base_url=closed_url)) == paths

    def test_only_what_is_missing_is_downloaded(self, server, tmp_path, cache):
        folder, url = server
        (folder / "b.txt").write_bytes(b"B")
        (tmp_path / "a.txt").write_bytes(b"A")
        source = make_source(url, a_txt=b"A", b_txt=b"B")
        paths = [tmp_path / "a.txt", cache / "tiny-folder" / "b.txt"]
        assert fetch(source, data_dir=tmp_path) == paths

    def test_another_file_is_not_kept(self, server, cache):
        folder, url = server
        (folder / "a.txt").write_bytes(b"<html>Please log in</html>")
        with pytest.raises(DataUnavailableError, match=r"sent another a\.txt, its sha256 is"):
            fetch(make_source(url, a_txt=b"A"))
        assert list((cache / "tiny-folder").iterdir()) == []

    def test_a_file_that_the_host_lacks(self, server):
        _, url = server
        with pytest.raises(DataUnavailableError, match=r"download from .* failed .*404.*try again"):
            fetch(make_source(url, a_txt=b"A"))


def test_tensorflow_datasets_is_imported_by_a_download_only():
    code = (
        "import sys, hgrad_jax.data as d; d.load('digits'); d.load('penguins'); "
        "assert not {'tensorflow_datasets', 'requests'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class TestMnist:
    def test_synthetic_files_from_the_download_to_the_arrays(self, server, monkeypatch):
        folder, url = server
        images = np.arange(5 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(5, 28, 28)
        labels = np.array([5, 0, 4, 1, 9], np.uint8)
        files = [file.name for file in mnist.SOURCE.files]
        for name, array in zip(
            files, (images[:3], labels[:3], images[3:], labels[3:]), strict=True
        ):
            write_idx(folder / name, array)
        monkeypatch.setattr(mnist, "SOURCE", sums_of(mnist.SOURCE, folder)._replace(base_url=url))
        train, test = load_mnist()
        assert (train.inputs.shape, test.inputs.shape) == ((3, 28, 28, 1), (2, 28, 28, 1))
        assert (train.inputs.dtype, train.labels.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(train.inputs[..., 0], images[:3].astype(np.float32) / 255)
        assert train.labels.tolist() == [5, 0, 4]
        assert test.labels.tolist() == [1, 9]

    def test_idx_of_any_rank(self, tmp_path):
        array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
        for shaped in (array, array.ravel(), array[:0]):
            write_idx(tmp_path / "a.gz", shaped)
            np.testing.assert_array_equal(mnist.read_idx(tmp_path / "a.gz"), shaped)

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (b"\0\0\x0d\x01" + bytes(8), "is not an IDX file of unsigned bytes: it begins"),
            (b"\0\0\x08\x03" + bytes(4), "is not an IDX file of unsigned bytes"),
            (b"", "is not an IDX file of unsigned bytes"),
            (b"\0\0\x08\x01\0\0\0\x05abc", r"says its shape is \[5\] but holds 3 bytes"),
        ],
    )
    def test_malformed_idx(self, tmp_path, raw, message):
        (tmp_path / "a.gz").write_bytes(gzip.compress(raw))
        with pytest.raises(ValueError, match=message):
            mnist.read_idx(tmp_path / "a.gz")

    @needs("mnist/train-images-idx3-ubyte.gz")
    def test_the_originals(self):
        train, test = load_mnist(ORIGINALS, download=False)
        assert (train.inputs.shape, test.inputs.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
        assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
        mean = train.inputs.mean(dtype=np.float64)
        assert mean == pytest.approx(33.318421449829934 / 255, rel=1e-6)


class TestCifar10:
    @staticmethod
    def records(labels):
        """Records whose pixels are record number, channel, row and column, mixed."""
        i, c, y, x = np.ogrid[: len(labels), :3, :32, :32]
        pixels = ((37 * i + 61 * c + 5 * y + x) % 256).astype(np.uint8)
        raw = np.concatenate(
            [np.array(labels, np.uint8)[:, None], pixels.reshape(len(labels), -1)], axis=1
        )
        return raw.tobytes(), pixels.transpose(0, 2, 3, 1).astype(np.float32) / 255

    def test_records(self):
        raw, images = self.records([6, 9, 9])
        data = cifar10.read_records(raw)
        np.testing.assert_array_equal(data.inputs, images)
        assert data.labels.tolist() == [6, 9, 9]
        assert (data.inputs.dtype, data.labels.dtype) == (np.float32, np.int32)
        assert data.inputs.flags.c_contiguous
        with pytest.raises(ValueError, match="3074 bytes are not a whole number of records"):
            cifar10.read_records(bytes(3074))

    def test_a_synthetic_archive(self, tmp_path, monkeypatch):
        with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
            for number, name in enumerate(
                [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
            ):
                info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
                raw, _ = self.records([number, 9])
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))
        monkeypatch.setattr(cifar10, "SOURCE", sums_of(cifar10.SOURCE, tmp_path))
        train, test = load_cifar10(tmp_path, download=False)
        assert train.inputs.shape == (10, 32, 32, 3)
        assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
        assert test.labels.tolist() == [5, 9]

    def test_the_subset_is_no_substitute_for_the_data_set(self, tmp_path):
        with pytest.raises(DataUnavailableError, match=r"cifar10_subset: .*first4000\.bin.*cannot"):
            load_cifar10_subset(tmp_path)

    @needs("cifar10-subset/data_batch_1-first4000.bin")
    def test_the_subset_of_the_originals(self):
        train, test = load("cifar10_subset", ORIGINALS)
        assert (train.inputs.shape, test.inputs.shape) == ((4000, 32, 32, 3), (1000, 32, 32, 3))
        train_counts = [396, 366, 420, 384, 422, 393, 414, 385, 407, 413]
        test_counts = [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]
        assert np.bincount(train.labels).tolist() == train_counts
        assert np.bincount(test.labels).tolist() == test_counts
        pixels = train.inputs.reshape(-1, 3).astype(np.float64)
        np.testing.assert_allclose(pixels.mean(0), [0.49160, 0.48176, 0.44466], atol=1e-5)
        np.testing.assert_allclose(pixels.std(0), [0.24711, 0.24397, 0.26250], atol=1e-5)
        np.testing.assert_allclose(255 * train.inputs[0, 0, 0], [59, 62, 63], rtol=1e-6)
