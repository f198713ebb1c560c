"""Threads, open files, pipes and clocks in CPython, which checks itself.

Usage: threads.py ASK DIR
"""
import hashlib, json, os, queue, random, sys, tempfile, threading, time

ask, directory = sys.argv[1:]
problems, lock = [], threading.Lock()
counts = {}


def problem(text):
    with lock:
        problems.append(text)


class Worker(threading.Thread):
    """One that works until it is asked to check; checking is work as well."""

    def __init__(self, name):
        super().__init__(name=name, daemon=True)
        self.requests, self.steps, self.ident_before = queue.Queue(), 0, None

    def run(self):
        self.ident_before = threading.get_native_id()
        last = time.monotonic()
        while True:
            try:
                self.step()
                self.steps += 1
                now = time.monotonic()
                if now < last:
                    problem(f"{self.name}: the clock went back by {last - now}")
                last = now
                if threading.get_native_id() != self.ident_before:
                    problem(f"{self.name}: its thread has another number")
                try:
                    done = self.requests.get(timeout=0.002)
                except queue.Empty:
                    continue
                self.check()
                done.set()
            except Exception as error:
                problem(f"{self.name}: {error!r}")
                return


class Writer(Worker):
    """Appends numbered lines to a file and reads some of them again."""

    def __init__(self, name, file):
        super().__init__(name)
        self.file, self.lines = file, 0

    def step(self):
        self.file.seek(0, os.SEEK_END)
        if self.file.tell() != self.lines * 32:
            problem(f"{self.name}: the file ends at {self.file.tell()} after {self.lines} lines")
        self.file.write(b"%-31d\n" % self.lines)
        self.lines += 1
        if self.lines % 8:  # else there is something in the buffer
            self.file.flush()
        if self.lines % 16 == 0:
            at = random.randrange(self.lines)
            self.file.seek(at * 32)
            if int(self.file.read(32)) != at:
                problem(f"{self.name}: line {at} is another one")

    def check(self):
        self.file.seek(0)
        for i in range(self.lines):
            if self.file.read(32) != b"%-31d\n" % i:
                problem(f"{self.name}: line {i} is wrong")
                return


class Piper(Worker):
    """Keeps some numbers in a pipe."""

    def __init__(self, name):
        super().__init__(name)
        self.r, self.w = os.pipe()
        self.sent = self.got = 0

    def step(self):
        while self.sent - self.got < 500:
            os.write(self.w, self.sent.to_bytes(8, "little"))
            self.sent += 1
        for _ in range(100):
            if (n := int.from_bytes(os.read(self.r, 8), "little")) != self.got:
                problem(f"{self.name}: {n} came out of the pipe and not {self.got}")
            self.got += 1

    def check(self):
        pass


class Heap(Worker):
    """Objects with known content, some of them replaced all the time."""

    def __init__(self, name):
        super().__init__(name)
        self.things = {}

    def step(self):
        for _ in range(50):
            key = random.randrange(20000)
            data = random.randbytes(random.randrange(10, 600))
            self.things[key] = (data, hashlib.sha1(data).digest())

    def check(self):
        for key, (data, digest) in self.things.items():
            if hashlib.sha1(data).digest() != digest:
                problem(f"{self.name}: object {key} has changed")


named = open(os.path.join(directory, "lines"), "w+b")
nameless = tempfile.TemporaryFile(dir=directory)
workers = [Writer("named file", named), Writer("deleted file", nameless), Piper("pipe"), Heap("heap"), Heap("heap 2")]
for worker in workers:
    worker.start()
pid = os.getpid()
print("ready threads.py", pid, flush=True)

while True:
    try:
        with open(ask) as f:
            token = f.read()
        os.remove(ask)
    except FileNotFoundError:
        time.sleep(0.01)
        continue
    before = [worker.steps for worker in workers]
    for worker in workers:
        done = threading.Event()
        worker.requests.put(done)
        if not done.wait(60):
            problem(f"{worker.name}: no answer")
    for worker, steps in zip(workers, before):
        # It may have answered between two steps.
        late = time.monotonic() + 10
        while worker.steps <= steps and time.monotonic() < late:
            time.sleep(0.001)
        if worker.steps <= steps:
            problem(f"{worker.name}: stands still")
    if os.getpid() != pid:
        problem(f"process {pid} has become process {os.getpid()}")
    verdict = {
        "program": "threads.py", "token": token, "pid": os.getpid(), "host": os.uname().nodename,
        "ok": not problems, "problems": problems, "counts": {w.name: w.steps for w in workers},
    }
    with open(ask + ".new", "w") as f:
        json.dump(verdict, f)
    os.rename(ask + ".new", ask + ".answer")
