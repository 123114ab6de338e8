"""What the tests of saved files share: changed files, and what refusing them takes."""

import hashlib
import json
import resource
import sys
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.numpy import load as read_tensors
from safetensors.numpy import save as write_tensors

from skvae import VAEEstimator
from skvae.persistence import parse
from skvae.persistence.container import BLANK, DIGEST


def reseal(content):
    """With the checksum that belongs to the content."""
    blank = content[: DIGEST.start] + BLANK.encode() + content[DIGEST.stop :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    return content[: DIGEST.start] + digest + content[DIGEST.stop :]


def description(content):
    """The JSON of a file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return json.loads(header["__metadata__"]["skvae"])


def edit(content, change):
    """A file whose description and arrays were changed, with the right checksum."""
    metadata, arrays = description(content), read_tensors(content)
    change(metadata, arrays)
    metadata = {"sha256": BLANK, **{k: v for k, v in metadata.items() if k != "sha256"}}
    text = json.dumps(metadata, separators=(",", ":"))
    return reseal(write_tensors(arrays, {"skvae": text}))


def learned(metadata):
    """What the description says that the estimator has learned."""
    return metadata["estimator"]["learned"]


def fitted(metadata, *keys):
    """A part of the fitted model in the description, by its keys."""
    node = learned(metadata)["fitted_"]["dict"]
    for key in keys:
        node = node[key]["dict"]
    return node


def spec(name, **parameters):
    """A specification in the description."""
    return {"dict": {"$kind": name, "parameters": {"dict": parameters}}}


@contextmanager
def at_most_more(memory):
    """Within, the process gets so many bytes more, or a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def assert_refused(content, error, message):
    """A file is refused at once, without memory, and without an import."""
    repr(VAEEstimator())  # scikit-learn imports its printer at the first use
    modules = set(sys.modules)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with at_most_more(2**30), pytest.raises(error, match=message):
            parse(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 5
    assert peak < 30_000_000
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    assert resident < 100_000  # KiB, torch's memory as well
    assert set(sys.modules) == modules
