"""What skvae.load does with broken and hostile files, and what a killed save leaves.

    python benchmarks/fuzz_persistence.py fuzz --files 100000
    python benchmarks/fuzz_persistence.py fuzz --files 100000 --engine mutations
    python benchmarks/fuzz_persistence.py kill --times 50

Every mutated file must load or raise FileFormatError. While it loads nothing may be
imported, executed or opened; it has a time limit, and the process a limit of memory.
With atheris the mutations are guided by coverage; without, they are drawn at random.
Both change bytes, and the JSON and the arrays of files whose checksum is then made to
agree. The files are those of small models, and some that version 0.1 has saved.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

import numpy as np
import safetensors.numpy
from sklearn.datasets import load_digits

watched = (
    atheris.instrument_imports(
        include=[
            *("skvae.persistence", "skvae.version1", "skvae.plain", "skvae.fitted"),
            "skvae.forms",
        ]
    )
    if atheris and "fuzz" in sys.argv and "mutations" not in sys.argv
    else contextlib.nullcontext()
)
with watched:
    import skvae
    from skvae import persistence
    from skvae.persistence import container

SAVED = Path(__file__).parents[1] / "tests" / "data" / "saved" / "v0.1"
OLD = (
    *("gaussian_shared", "mixed_by_index", "mixed_pandas", "categorical_blocks"),
    *("conv", "conditional_mixed", "prior_flow", "unfitted"),
)
SECONDS_PER_FILE = 10
MEMORY = 2**30  # on top of what the process has before the first file
# What Python tells of, and a file must not bring about.
FORBIDDEN = {
    *("import", "exec", "compile", "pickle.find_class", "marshal.loads"),
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"),
    *("socket.connect", "ctypes.dlopen", "shutil.rmtree", "os.remove", "os.rename"),
}
INTERESTING = [
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63 - 1, 2**63, -(2**63), 10**9),
    *(0.5, -0.0, 1e308, 1e-320, "", "auto", "cpu", "cuda:99", "MLP", "VAEEstimator"),
    *("os.system", "__class__", "../x", "\ud800", "\0", [], {}, [[]]),
    *({"tuple": []}, {"dict": {}}, {"float": "nan"}, {"float": "x"}, {"device": "cpu"}),
    *({"scalar": ["uint8", 300]}, {"scalar": ["float32", 1e300]}, {"scalar": 1}),
    *({"array": "units_.scale"}, {"objects": "units_.scale"}, {"estimator": None}),
    *({"array": "fitted_.codes"}, {"list": {"array": "fitted_.units.scale"}}),
    *({"dict": {"$kind": "Units"}}, {"dict": {"$kind": "MLP", "parameters": None}}),
    *("rows", "images", "table", "one_hot_rows", "one_hot_table", "number", "category"),
    {"tuple": [10**9, {"tuple": [10**9] * 50}]},
]


def seeds():
    """Files of a few small estimators."""
    X = load_digits().data[:60, 20:26] / 16
    common = {"latent_dim": 2, "hidden_dim": 3, "epochs": 2, "random_state": 0}
    import pandas as pd

    named = pd.DataFrame(X, columns=list("abcdef"))
    table = pd.DataFrame({"height": X[:, 0], "town": ["Rome", "Oslo", "Bern"] * 20})
    images = np.pad(X, ((0, 0), (0, 3))).reshape(60, 1, 3, 3)
    mixed = skvae.Mixed(((skvae.Gaussian("row"), 4), ("bernoulli", 2)))
    families = skvae.Mixed({"height": skvae.Beta(), "town": "categorical"})
    table["height"] = 0.25 + table["height"] / 2
    estimators = [
        skvae.VAEEstimator(**common).fit(X),
        skvae.VAEEstimator(**common, likelihood=skvae.Gaussian(scale="feature")).fit(
            named
        ),
        skvae.VAEEstimator(**common, likelihood=mixed).fit(X),
        skvae.VAEEstimator(**common, likelihood=families).fit(table),
        skvae.VAEEstimator(**common, likelihood="categorical").fit(np.rint(3 * X)),
        skvae.VAEEstimator(**common, network=skvae.ConvNet((2,), 0)).fit(images),
        skvae.ConditionalVAEEstimator(**common).fit(X, np.arange(60) % 3),
        skvae.VAEEstimator(hidden_dim=(5, np.int64(3)), network=skvae.MLP("tanh")),
    ]
    contents = [persistence.dump(estimator) for estimator in estimators]
    return contents + [(SAVED / f"{name}.safetensors").read_bytes() for name in OLD]


# ---------------------------------------------------------------------- mutations


def reseal(content):
    """With the checksum that belongs to the content."""
    start, stop = container.DIGEST.start, container.DIGEST.stop
    blank = content[:start] + container.BLANK.encode() + content[stop:]
    digest = hashlib.sha256(blank).hexdigest().encode()
    return content[:start] + digest + content[stop:]


def change_bytes(random, content):
    content = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 5])):
        at, other = (random.randrange(len(content) + 1) for _ in range(2))
        kind = random.randrange(6)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            content[at : at + 4] = random.randbytes(4)
        elif kind == 2:
            content[at:at] = random.randbytes(random.randrange(9))
        elif kind == 3:
            del content[at : at + random.randrange(1, 64)]
        elif kind == 4:
            content[at : at + 16] = content[other : other + 16]
        elif kind == 5:
            content[:8] = random.choice(
                [0, 1, len(content), len(content) // 2, 2**20, 2**32, 2**63]
            ).to_bytes(8, "little")
        if not content:
            content = bytearray(b"{")
    return (
        bytes(content[: random.randrange(len(content))])
        if not random.randrange(10)
        else bytes(content)
    )


def nodes(tree):
    """(container, key) of everything within JSON."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, dict | list):
            yield from nodes(value)


def change_json(random, tree):
    places = list(nodes(tree))
    if not places:
        return
    container, key = random.choice(places)
    kind = random.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1:
        other, other_key = random.choice(places)
        with contextlib.suppress(LookupError):
            container[key] = json.loads(json.dumps(other[other_key]))
    elif kind == 2 and isinstance(container, dict):
        container[random.choice(["x", "$kind", "tuple", "array", "class"])] = (
            container.pop(key)
        )
    elif kind == 3 and isinstance(container[key], int | float):
        container[key] = random.choice([-1, 2, 10**6]) * container[key]
    elif kind == 4 and isinstance(container[key], list):
        container[key] = container[key] * random.choice([2, 50, 2000])
    else:
        container[key] = random.choice(INTERESTING)


def change_array(random, arrays):
    if not arrays:
        return
    name = random.choice(sorted(arrays))
    array = np.array(arrays[name])
    kind = random.randrange(6)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[random.choice(["x", *sorted(arrays)])] = array
    elif kind == 2:
        with np.errstate(all="ignore"):
            arrays[name] = array.astype(
                random.choice(["f2", "f4", "f8", "i8", "u4", "?"])
            )
    elif kind == 3:
        shape = random.choice([(-1,), (-1, 1), (1, -1), array.shape[::-1]])
        arrays[name] = array.reshape(shape)
    elif kind == 4:
        arrays[name] = np.resize(array, random.choice([(0,), (1,), (0, 2**31), (3, 3)]))
    elif array.size:
        value = random.choice([np.nan, np.inf, -1, 0, 1e300, 2**31])
        with np.errstate(all="ignore"):
            array.flat[random.randrange(array.size)] = np.float64(value).astype(
                array.dtype
            )
        arrays[name] = array


def change_structure(random, content):
    """Valid JSON of another content, under the right checksum."""
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = json.loads(header["__metadata__"]["skvae"])
        arrays = safetensors.numpy.load(content)
        if random.randrange(3):
            for _ in range(random.choice([1, 1, 2, 4])):
                change_json(random, metadata if random.randrange(9) else header)
        else:
            change_array(random, arrays)
        metadata = {
            "sha256": container.BLANK,
            **{k: v for k, v in metadata.items() if k != "sha256"},
        }
        text = json.dumps(metadata, separators=(",", ":"))
        if random.randrange(9):
            return reseal(safetensors.numpy.save(arrays, {"skvae": text}))
        header["__metadata__"] = {"skvae": text}
        start = json.dumps(header, separators=(",", ":")).encode()
        return reseal(len(start).to_bytes(8, "little") + start + content[8 + length :])
    except Exception:  # what was mutated before has no structure any more
        return change_bytes(random, content)


def mutate(random, content):
    content = content or b"{"
    kind = random.randrange(10)
    if kind < 3:
        return change_bytes(random, content)
    if kind < 5:
        return reseal(change_bytes(random, content))
    return change_structure(random, content)


# -------------------------------------------------------------------------- fuzz


class Hang(BaseException):
    """A file took too long."""


class Watch:
    """Loads files, and counts what came of them."""

    def __init__(self, folder):
        self.folder = folder
        self.path = Path("/dev/shm" if os.path.isdir("/dev/shm") else folder) / (
            f"fuzz-{os.getpid()}.safetensors"
        )
        self.outcomes = Counter()
        self.failures = Counter()
        self.forbidden = Counter()
        self.loading = False
        self.slowest = 0.0
        self.files = 0
        self.started = time.perf_counter()
        sys.addaudithook(self.audit)
        signal.signal(signal.SIGALRM, self.alarm)

    def audit(self, event, arguments):
        if not self.loading or (event == "compile" and arguments[1] == "<unknown>"):
            return  # inspect parses the signature of a built-in, for a repr
        if event in FORBIDDEN or (
            event == "open" and str(arguments[0]) != str(self.path)
        ):
            self.forbidden[f"{event} {arguments[0]}"] += 1
            raise RuntimeError(f"forbidden while loading: {event} {arguments!r}")

    def alarm(self, *_):
        raise Hang

    def limit_memory(self):
        """From here on, so much more memory and no more."""
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        used = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))

    def __call__(self, content):
        self.files += 1
        if self.files % 10_000 == 0:
            print(f"{self.files:,} files, {self.failures.total()} failures", flush=True)
        self.path.write_bytes(content)
        start = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, SECONDS_PER_FILE)
        self.loading = True
        try:
            loaded = skvae.load(self.path)
        except persistence.FileFormatError as error:
            self.outcomes[type(error).__name__] += 1
        except Hang:
            self.fail("hang", content)
        except BaseException as error:
            self.fail(f"{type(error).__name__}: {str(error)[:100]}", content)
        else:
            self.outcomes["loaded"] += 1
            if not isinstance(loaded, skvae.VAEEstimator):
                self.fail(f"loaded {loaded!r}", content)
        finally:
            self.loading = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.slowest = max(self.slowest, time.perf_counter() - start)

    def fail(self, kind, content):
        self.loading = False
        self.failures[kind] += 1
        if self.failures[kind] <= 3:
            name = hashlib.sha256(content).hexdigest()[:12]
            (Path(self.folder) / f"failure-{name}").write_bytes(content)
            print(f"FAILURE {kind}: {name}", flush=True)

    def report(self, engine):
        self.path.unlink(missing_ok=True)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        hangs = self.failures.pop("hang", 0)
        print(
            f"engine {engine}; files {self.files:,}; crashes {self.failures.total()}; "
            f"hangs {hangs}; imports and other forbidden acts "
            f"{self.forbidden.total()}; peak memory {after / 1024:.0f} MiB "
            f"({(after - self.before) / 1024:.0f} MiB above the start); slowest file "
            f"{self.slowest:.2f} s; {time.perf_counter() - self.started:.0f} s in all"
        )
        for name, count in [*self.outcomes.most_common(), *self.failures.items()]:
            print(f"  {count:7,} {name}")
        for name, count in self.forbidden.items():
            print(f"  {count:7,} {name}")
        return 1 if self.failures or hangs or self.forbidden else 0


def fuzz(n_files, engine, seed, folder):
    contents = seeds()
    watch = Watch(folder)
    for content in contents:  # whatever loads late has loaded by then
        skvae.load(_written(watch.path, content))
        repr(skvae.VAEEstimator(network=skvae.MLP()))  # scikit-learn's, in messages
    watch.limit_memory()
    if engine == "mutations":
        generator = random.Random(seed)
        while watch.files < n_files:
            content = generator.choice(contents)
            for _ in range(generator.choice([1, 1, 1, 2, 3])):
                content = mutate(generator, content)
            watch(content)
        return watch.report(engine)

    corpus = Path(folder) / "corpus"
    corpus.mkdir(exist_ok=True)
    for i, content in enumerate(contents):
        (corpus / f"seed-{i}").write_bytes(content)

    def mutator(content, max_size, seed):
        generator = random.Random(seed)
        if generator.randrange(4) or not content:
            return mutate(generator, content or contents[0])[:max_size]
        content = atheris.Mutate(content, max_size)
        return reseal(content) if generator.randrange(2) else content

    def one(content):
        watch(content)
        if watch.files >= n_files:
            code = watch.report("atheris")
            sys.stdout.flush()
            os._exit(code)  # libFuzzer would end with statistics of its own

    options = [f"-seed={seed}", "-max_len=65536", "-timeout=60", "-rss_limit_mb=4096"]
    atheris.Setup(
        [sys.argv[0], *options, "-verbosity=0", str(corpus)],
        one,
        custom_mutator=mutator,
    )
    atheris.Fuzz()
    return 1


def _written(path, content):
    path.write_bytes(content)
    return path


# -------------------------------------------------------------------------- kill


def kill(times, seed, folder):
    """Kill a process that saves without pause, at a random moment, again and again."""
    path = Path(folder) / "killed.safetensors"
    X = load_digits().data[:50] / 16
    small = skvae.VAEEstimator(latent_dim=3)
    large = skvae.VAEEstimator(2, hidden_dim=600, epochs=1, random_state=0).fit(X)
    wanted = [persistence.dump(small), persistence.dump(large)]
    found = Counter()
    temporaries = 0
    generator = random.Random(seed)
    for _ in range(times):
        skvae.save(large, path)
        read, write = os.pipe()
        process = os.fork()
        if process == 0:
            while True:
                for estimator in (small, large):
                    skvae.save(estimator, path)
                    os.write(write, b".")
        os.read(read, 1)
        time.sleep(generator.uniform(0, 0.05))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(read)
        os.close(write)
        content = path.read_bytes()
        found["whole" if content in wanted else "broken"] += 1
        temporaries += len(list(Path(folder).glob(".*.tmp")))
        for temporary in Path(folder).glob(".*.tmp"):
            temporary.unlink()
    print(
        f"killed {times} times; files whole {found['whole']}, broken "
        f"{found['broken']}; killed while a temporary file was there: {temporaries}"
    )
    return 1 if found["broken"] else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=["fuzz", "kill"])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--engine", choices=["atheris", "mutations"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where failures go")
    options = parser.parse_args()
    folder = options.folder or tempfile.mkdtemp(prefix="fuzz-")
    if options.command == "kill":
        return kill(options.times, options.seed, folder)
    engine = options.engine or ("atheris" if atheris else "mutations")
    return fuzz(options.files, engine, options.seed, folder)


if __name__ == "__main__":
    sys.exit(main())
