"""Measures on the GPUs of one host what README's table says, and prints it as a table.

    python3 benches/whole_table.py --gpus 8 --out results [PART ...]

Needs a release build of scout-dist and Python 3.11 or newer with nothing but its own library, and for two parts `mpirun` or PyTorch and
transformers. Without parts all of them run, what matters most first; `--help` lists them. Each leaves its JSON and what was
printed in the folder. Ends with 1 if a part failed, or was left out because `--deadline` came.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

RECIPE = """\
random_weights: true
template: llama4
cutoff_len: 2048
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: none
output_dir: out
bf16: true
"""
ALPACA = ["--lengths", "tests/fixtures/alpaca_lengths.json", "--routing", "natural", "--warm-up", "0"]
# Runs whose bits are compared: every sum in a fixed order.
TWELVE_LAYERS = ["deterministic=true", "--layers", "12", "--batch", "8", "--steps", "20"]
ALL_LAYERS = ["deterministic=true", "--batch", "4", "--steps", "20"]
PEER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer_fsdp2.py")


# The least that a command is begun with before the deadline, and what is kept of it for ending the command.
WORTH_BEGINNING, FAREWELL = 30, 15
# What `bench step` prints when it is set up and its steps begin.
STEPS_BEGIN = "useful work of a step"


class Failed(Exception):
    pass


class NoTime(Exception):
    pass


class Table:
    def __init__(self, options):
        self.options = options
        self.ends = time.monotonic() + options.deadline
        os.makedirs(options.out, exist_ok=True)
        self.recipe = os.path.join(options.out, "recipe.yaml")
        with open(self.recipe, "w") as file:
            file.write(RECIPE)

    def path(self, name):
        return os.path.join(self.options.out, name)

    def launched(self):
        return [self.options.binary, "launch", "-n", str(self.options.gpus)]

    def run(self, name, command, seconds):
        """What a command printed. Fails where it fails, or has not ended in time."""
        left = self.ends - time.monotonic() - FAREWELL
        if left < WORTH_BEGINNING:
            raise NoTime
        with open(self.path(name + ".txt"), "w") as heard:
            child = started(command, heard)
            try:
                code = child.wait(min(seconds, left))
            except subprocess.TimeoutExpired:
                code = f"{end(child)}, after {min(seconds, left):.0f} s"
            finally:
                if child.poll() is None:
                    end(child)
        with open(self.path(name + ".txt")) as heard:
            text = heard.read()
        if code != 0:
            raise Failed(f"{' '.join(command)}\nended with {code}:\n" + "\n".join(text.splitlines()[-5:]))
        return text

    def step(self, name, arguments, seconds, start=None):
        """The results of `bench step`."""
        found = self.path(name + ".json")
        command = [*(start or self.launched()), "bench", "step", self.recipe, "--device", self.options.device]
        self.run(name, [*command, "--json", found, *without(arguments, self.options.step), *self.options.step], seconds)
        with open(found) as file:
            return json.load(file)

    def speed(self, name, what, arguments, seconds):
        found = self.step(name, arguments, seconds)
        own = max(rank["memory_peak_bytes"] or 0 for rank in found["ranks"]) / 2**30
        plan = found["plan"]
        yield what, (
            f"{found['step_s'] * 1e3:.1f} ms, predicted {of(plan['predicted_step_s'], 1e3)};"
            f" {found['tok_s_gpu']:,.0f} tokens/s a GPU ({found['useful_tflops']:.0f} useful TFLOP/s); exposed"
            f" {of(found['exposed_comm'], 100)} %, NVML {of(found['nvml_utilization'])} %, SM active"
            f" {of(found['sm_active'])} %; {own:.2f} GiB, planned {of(plan['predicted_peak_bytes'], 2**-30)} with"
            f" libraries; {of(found['sm_clock_megahertz'])} MHz, {of(found['power_watts'])} W; experts {plan['experts']},"
            f" {plan['keep']}, {plan['runs']} runs; gather: {found['gather']}"
        )

    def same_bits(self, what, bits, runs):
        """Adds the losses of `runs` to `bits`, and compares them with what is there."""
        for name, arguments, start in runs:
            bits[name] = self.step(name, arguments, 240, start)["loss_bits"]
        one, *others = bits.values()
        if any(other != one for other in others):
            raise Failed(f"{what}: losses differ: {bits}")
        return what, f"{len(one)} losses equal in {', '.join(bits)}; the last is {one[-1]}"

    def peer(self, name, arguments, seconds):
        """What FSDP2 and transformers found of the same work."""
        found = self.path(name + ".json")
        ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(self.options.gpus)]
        self.run(name, [*ranks, PEER, "--json", found, *arguments], seconds)
        with open(found) as file:
            return json.load(file)

    def mpirun(self):
        return ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(self.options.gpus), self.options.binary]


def started(command, heard):
    """In a group of processes of its own, so that nothing of it stays."""
    options = {"stdout": heard, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, process_group=0, **options)


def end(child):
    """Asks it to end, and makes it and all that it has started if they do not soon."""
    family = descendants(child.pid)
    child.terminate()
    try:
        code = child.wait(FAREWELL)
    except subprocess.TimeoutExpired:
        child.kill()
        code = child.wait()
    for pid in family:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return code


def leave(*_):
    """Whoever ends this ends what it has begun, and once is enough: a second signal would interrupt that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit("ended before all was measured")


def without(arguments, words):
    """`arguments` but for those options, each with its value, that are among `words` too."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument.startswith("--") and argument in words:
            next(rest)
        else:
            kept.append(argument)
    return kept


def told(text, words):
    """The lines with these words, without who said them. Fails where there is none."""
    lines = [line.split("] ")[-1] for line in text.splitlines() if words in line]
    if not lines:
        raise Failed(f"nothing was told with `{words}`")
    return lines


def of(number, factor=1):
    return "not given" if number is None else f"{number * factor:.1f}"


def check(table):
    """every way of gathering word by word, and `verify` in f32 and bf16"""
    if table.options.device == "cuda":
        text = table.run("selftest", [*table.launched(), "selftest", "gather"], 120)
        yield "units gathered by every way", "; ".join(told(text, " wrong words"))
    for dtype in ["f32", "bf16"] if table.options.device == "cuda" else ["f32"]:
        dtypes = ["--dtype", dtype] if table.options.device == "cuda" else []
        command = ["verify", "tests/fixtures/tiny-scout", "--device", table.options.device, *dtypes]
        # The fixture has four experts, which more ranks cannot share; one alone has no other.
        for weights in ["zero3", "expert-resident"] if table.options.gpus in (2, 4) else ["zero3"]:
            name = f"verify_{weights}_{dtype}"
            text = table.run(name, [*table.launched(), *command, "--weights", weights], 120)
            yield f"verify, {weights}, {dtype}", told(text, " ok, ")[-1]


def gather(table):
    """GB/s into each GPU by every way, alone and under products"""
    found = table.path("gather.json")
    command = ["bench", "gather", table.recipe, "--device", table.options.device, "--seconds", "1.2", "--json", found]
    table.run("gather", [*table.launched(), *command], 180)
    with open(found) as file:
        for way in json.load(file)["ways"]:
            middle = {key: sorted(way[key])[len(way[key]) // 2] for key in ["gb_s_alone", "gb_s_under_products"]}
            yield f"gathered by {way['way']}", (
                f"{middle['gb_s_alone']:.0f} GB/s alone, {middle['gb_s_under_products']:.0f} under products, which lose"
                f" {way['slow_down_percent']:.1f} %"
            )


def bits12(table):
    """the same losses by copy engines, NCCL, resident and with experts that stay, 12 layers"""
    gathered = [["resident_layers=0", "gather=copy"], ["resident_layers=0", "gather=nccl"]]
    ways = [*gathered, ["weights=resident"], ["weights=expert-resident"]]
    names = ["copy12", "nccl12", "resident12", "experts12"]
    yield table.same_bits("12 layers", {}, [(name, TWELVE_LAYERS + way, None) for name, way in zip(names, ways)])


def bits48(table):
    """the same losses by copy engines, NCCL and with experts that stay, under mpirun too, all layers"""
    [copy, nccl, stay] = [ALL_LAYERS + [word] for word in ["gather=copy", "gather=nccl", "weights=expert-resident"]]
    bits, mpirun = {}, table.mpirun()
    runs = [("copy48", copy, None), ("nccl48", nccl, None), ("experts48", stay, None)]
    yield table.same_bits("all layers", bits, runs)
    runs = [("mpirun48", copy, mpirun), ("experts_mpirun48", stay, mpirun)]
    yield table.same_bits("all layers, under mpirun too", bits, runs)


def one(table):
    """1 x 2,048 tokens on each GPU"""
    yield from table.speed("one", "1 x 2,048", ["--batch", "1", "--seconds", "8"], 150)


def sixteen(table):
    """16 x 2,048 tokens on each GPU"""
    yield from table.speed("sixteen", "16 x 2,048", ["--batch", "16", "--seconds", "20"], 200)


def zero3(table):
    """the same two with `weights: zero3`, which gathers experts too"""
    zero3 = ["weights=zero3"]
    yield from table.speed("one_zero3", "1 x 2,048, zero3", ["--batch", "1", "--seconds", "8", *zero3], 150)
    yield from table.speed("sixteen_zero3", "16 x 2,048, zero3", ["--batch", "16", "--seconds", "16", *zero3], 200)


def stay(table):
    """the same two with experts that stay and all else whole on every rank"""
    held = ["weights=expert-resident", "resident_layers=48"]
    yield from table.speed("one_stay", "1 x 2,048, experts stay", ["--batch", "1", "--seconds", "8", *held], 150)
    yield from table.speed("sixteen_stay", "16 x 2,048, experts stay", ["--batch", "16", "--seconds", "16", *held], 200)


def h100(table):
    """16 x 2,048 in the memory of an H100"""
    arguments = ["--batch", "16", "--seconds", "16", "device_memory=80GiB"]
    yield from table.speed("h100", "16 x 2,048 in 80 GiB", arguments, 200)


def alpaca16(table):
    """1,000 rows of Alpaca's lengths, three epochs, 16 a GPU"""
    yield from alpaca(table, "alpaca16", 16)


def alpaca1(table):
    """the same, one row a GPU"""
    yield from alpaca(table, "alpaca1", 1)


def alpaca(table, name, rows):
    found = table.step(name, ["--batch", str(rows), "--epochs", "3", *ALPACA], 500)
    yield f"1,000 Alpaca lengths x 3, {rows} rows a GPU", (
        f"{found['seconds']:.1f} s from cold, {found['steps']} updates, {found['step_s'] * 1e3:.0f} ms each"
    )


def beside(table):
    """FSDP2 and transformers, then this program, on the same GPUs (needs PyTorch and transformers)"""
    if table.options.device != "cuda" or table.options.step:
        raise Failed("peers compute all layers, on GPUs: leave `--device` and `--step` out")
    for rows, seconds in [(1, 8), (16, 16)]:
        work = ["--batch", str(rows)]
        peers = [table.peer(f"peer{rows}", work, 260), table.peer(f"peer{rows}_compiled", [*work, "--compile"], 360)]
        own = table.step(f"beside{rows}", [*work, "--seconds", str(seconds)], 200)
        for key in ["layers", "batch", "seq"]:
            if any(peer[key] != own[key] for peer in peers):
                raise Failed(f"{key} differ: {[found[key] for found in [own, *peers]]}")
        eager, compiled = [peer["tok_s_gpu"] for peer in peers]
        retries = [peer["allocation_retries"] for peer in peers]
        yield f"{rows} x 2,048 beside FSDP2", (
            f"{own['tok_s_gpu']:,.0f} tokens/s a GPU beside {eager:,.0f}, and {compiled:,.0f} with layers compiled:"
            f" {own['tok_s_gpu'] / eager:.2f} and {own['tok_s_gpu'] / compiled:.2f} times as fast; retries of"
            f" allocations there: {retries}"
        )


def soak16(table):
    """60 steps of 16 x 2,048"""
    yield from soak(table, "soak16", 16, 60)


def soak4(table):
    """300 steps of 4 x 2,048"""
    yield from soak(table, "soak4", 4, 300)


def soak(table, name, rows, steps):
    found = table.step(name, ["--batch", str(rows), "--steps", str(steps)], 550)
    least, _, most = found["step_s_spread"]
    yield f"{steps} steps of {rows} x 2,048", (
        f"{found['step_s'] * 1e3:.1f} ms, {least * 1e3:.1f} at least, {most * 1e3:.1f} at most; last quarter against"
        f" the first {of(found['drift'], 100)} %; {of(found['power_watts'])} W"
    )


def load(table):
    """reading a checkpoint of 12 layers beside what the disk gives"""
    model = table.path("model")
    synth = ["synth", "--shape", "scout", "--layers", "12", "--dtype", "bf16", "--out", model]
    table.run("synth", [table.options.binary, *synth], 300)
    recipe = table.path("load.yaml")
    with open(recipe, "w") as file:
        file.write(RECIPE.replace("random_weights: true", f"model_name_or_path: {os.path.abspath(model)}"))
    found = table.path("load.json")
    command = ["bench", "load", recipe, "resident_layers=0", "--device", table.options.device, "--json", found]
    try:
        table.run("load", [*table.launched(), *command], 300)
    finally:
        shutil.rmtree(model)
    with open(found) as file:
        rates = json.load(file)
    yield "checkpoint of 12 layers", (
        f"{rates['bytes'] / 2**30:.2f} GiB in {rates['seconds']:.1f} s, {rates['gb_s']:.2f} GB/s,"
        f" {rates['ratio'] * 100:.0f} % of the disk alone; past the page cache: {rates['disk_direct']}"
    )


def kill(table):
    """`kill -9` of one rank while all train"""
    words = table.options.step
    command = [*table.launched(), "bench", "step", table.recipe, "--device", table.options.device]
    command += [*without(["--batch", "4", "--seconds", "600"], words), *words]
    before, text = memory_held(table), table.path("kill.txt")
    if table.ends - time.monotonic() < 120:
        raise NoTime
    with open(text, "w") as heard:
        launcher = started(command, heard)
        try:
            ranks = in_steps(table, launcher, text)
            os.kill(ranks[-1], signal.SIGKILL)
            begun = time.monotonic()
            code = launcher.wait(10)
            gone = time.monotonic() - begun
        except subprocess.TimeoutExpired:
            raise Failed("the launcher was still there 10 s after a rank was killed") from None
        finally:
            if launcher.poll() is None:
                end(launcher)
    left, after = [pid for pid in ranks if os.path.exists(f"/proc/{pid}")], memory_held(table)
    with open(text) as heard:
        sentence = told(heard.read(), "was killed by signal 9")[0]
    if " of step " not in sentence:
        raise Failed(f"no step had begun when a rank was killed: {sentence}")
    if left or code != 76 or any(now > then for now, then in zip(after, before)):
        raise Failed(f"exit code {code}; ranks left: {left}; GPUs hold {after} MiB, and held {before}: {sentence}")
    yield "one rank killed", f"all gone after {gone:.1f} s, exit code {code}, GPUs hold {after} MiB: {sentence}"


def in_steps(table, launcher, text):
    """The processes of all ranks, when they have been in the midst of steps for a while."""
    until = time.monotonic() + 90
    with open(text) as heard:
        while STEPS_BEGIN not in heard.read() and launcher.poll() is None and time.monotonic() < until:
            heard.seek(0)
            time.sleep(0.2)
    time.sleep(table.options.until_killed)
    ranks = children(launcher.pid) if launcher.poll() is None else []
    if len(ranks) != table.options.gpus:
        raise Failed(f"{len(ranks)} ranks ran when one was to be killed")
    return ranks


def descendants(pid):
    try:
        own = children(pid)
    except OSError:
        return []
    return own + [grandchild for child in own for grandchild in descendants(child)]


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def memory_held(table):
    """MiB on each GPU."""
    if table.options.device != "cuda":
        return []
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    used = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    return [int(line) for line in used.split()]


PARTS = [check, bits12, sixteen, one, gather, stay, zero3, h100, kill, alpaca16, alpaca1, beside, bits48, soak16, soak4, load]


def main():
    names = {part.__name__: part for part in PARTS}
    about = "\n".join(f"  {name:<10} {part.__doc__}" for name, part in names.items())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="parts:\n" + about,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="all when left out")
    parser.add_argument("--gpus", type=int, required=True, help="ranks, each with a GPU")
    parser.add_argument("--out", required=True, help="folder for what was measured")
    parser.add_argument("--binary", default="target/release/scout-dist")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    more = 'more words for `bench step`, as --step="--layers 4"'
    parser.add_argument("--step", type=shlex.split, default=[], metavar="WORDS", help=more)
    parser.add_argument("--until-killed", type=float, default=12, help="seconds of steps before a rank is killed")
    late = "seconds that all of it may take: what has not begun by then is left out"
    parser.add_argument("--deadline", type=float, default=float("inf"), metavar="SECONDS", help=late)
    options = parser.parse_args()
    for name in options.parts:
        if name not in names:
            parser.error(f"no part is called {name}, expected {', '.join(names)}")
    signal.signal(signal.SIGTERM, leave)
    table, failed = Table(options), []
    for name in options.parts or names:
        try:
            for what, found in names[name](table):
                print(f"| {what} | {found} |", flush=True)
        except NoTime:
            failed.append(name)
            print(f"| {name} | left out, or half of it: no time |", flush=True)
        except (Failed, OSError, KeyError, subprocess.SubprocessError) as error:
            failed.append(name)
            print(f"| {name} | FAILED: {type(error).__name__} {error} |", flush=True)
    if failed:
        sys.exit(f"failed or left out: {', '.join(failed)}")


if __name__ == "__main__":
    main()
