"""SQLite, written all the time by one connection and read by another.

Usage: database.py ASK FILE JOURNAL_MODE
"""
import json, os, random, sqlite3, sys, threading, time

ask, path, mode = sys.argv[1:]
problems = []
rows, committed = 0, 0
pause, paused = threading.Event(), threading.Event()


def connect():
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    if (got := connection.execute(f"PRAGMA journal_mode={mode}").fetchone()[0]) != mode:
        raise RuntimeError(f"journal mode is {got}")
    connection.execute("PRAGMA synchronous=OFF")  # the disk is not what is tested
    return connection


def write():
    global rows, committed
    try:
        connection = connect()
        while True:
            connection.execute("BEGIN IMMEDIATE")
            for _ in range(random.randrange(1, 40)):
                connection.execute("INSERT INTO t VALUES (?, ?)", (rows, random.randbytes(random.randrange(1, 400))))
                rows += 1
            # The sum of what there is follows from how many there are.
            if random.random() < 0.1:
                connection.execute("UPDATE t SET data = randomblob(50) WHERE n % 97 = 3")
            connection.execute("COMMIT")
            committed = rows
            while pause.is_set():
                paused.set()
                time.sleep(0.01)
            paused.clear()
            time.sleep(0.001)
    except Exception as error:
        problems.append(f"writer: {error!r}")
        paused.set()


def read(connection):
    count, total = connection.execute("SELECT COUNT(*), COALESCE(SUM(n), 0) FROM t").fetchone()
    if total != count * (count - 1) // 2:
        problems.append(f"reader: {count} rows add up to {total}")
    return count


reader = connect()
reader.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, data BLOB)")
threading.Thread(target=write, daemon=True).start()
print("ready database.py", os.getpid(), flush=True)

last = 0
while True:
    try:
        count = read(reader)
        if count < last:
            problems.append(f"reader: {count} rows after {last}")
        last = count
        with open(ask) as f:
            token = f.read()
        os.remove(ask)
    except FileNotFoundError:
        time.sleep(0.02)
        continue
    except sqlite3.Error as error:
        problems.append(f"reader: {error!r}")
        time.sleep(0.02)
        continue
    pause.set()
    if not paused.wait(60):
        problems.append("the writer does not answer")
    if (count := read(reader)) != committed:
        problems.append(f"{count} rows of {committed}")
    if (result := reader.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
        problems.append(f"integrity_check: {result}")
    pause.clear()
    verdict = {
        "program": "database.py", "token": token, "pid": os.getpid(), "host": os.uname().nodename,
        "ok": not problems, "problems": problems, "counts": {"rows": count},
    }
    with open(ask + ".new", "w") as f:
        json.dump(verdict, f)
    os.rename(ask + ".new", ask + ".answer")
