"""A gcloud that costs nothing: it records what it is asked and plays a slice's lives.

python fake_gcloud.py FOLDER arguments...

FOLDER/lives.json   a list of lives, one for each `create`; a life is a list of steps, and each
                    `describe` goes one further, until the last. A step is a line: the slice's
                    state, then a word for each worker that has reported: `running`,
                    `exited:0:running`, or - for one that has not. Last `gone`: there is no
                    slice any more.
FOLDER/faults.json  `[[words, status, message, times], ...]`: a command with these words fails.
FOLDER/stop.json    `[number, signal]`: with this call, counted from 0, the signal goes to the
                    caller.
FOLDER/calls.jsonl  what was called.
FOLDER/objects/     the bucket.
FOLDER/finish/      copied to FOLDER/run when all workers of a step have exited with 0.
FOLDER/start        if it is there, run on `create` with the start-up script's path.
"""

import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

ROOT = Path(sys.argv[1])
NOT_FOUND = "ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource 'it' was not found."


def flag(arguments, name):
    return next((a.split("=", 1)[1] for a in arguments if a.startswith(f"--{name}=")), None)


def load(name, default):
    path = ROOT / name
    return json.loads(path.read_text()) if path.exists() else default


def save(name, value):
    (ROOT / name).write_text(json.dumps(value))


def fail(message, status=1):
    print(message, file=sys.stderr)
    raise SystemExit(status)


def interrupt(number):
    stop = load("stop.json", None)
    if stop is not None and stop[0] == number:
        os.kill(os.getppid(), getattr(signal, stop[1]))
        time.sleep(20)


def injected(arguments):
    faults = load("faults.json", [])
    for fault in faults:
        words, status, message, times = fault
        if times and all(word in " ".join(arguments) for word in words.split()):
            fault[3] -= 1
            save("faults.json", faults)
            fail(message, status)


def resource():
    return load("resource.json", None)


def create(arguments):
    if resource() is not None:
        fail("ERROR: ALREADY_EXISTS: Resource 'it' already exists.")
    script = Path(flag(arguments, "metadata-from-file").removeprefix("startup-script="))
    copy = ROOT / f"startup-{len(load('used.json', []))}.sh"
    shutil.copy(script, copy)
    lives, used = load("lives.json", [["ACTIVE"]]), load("used.json", [])
    save("used.json", [*used, lives[len(used)]])
    labels = dict(pair.split("=") for pair in flag(arguments, "labels").split(","))
    save("resource.json", {"labels": labels, "steps": lives[len(used)], "step": -1})
    if (ROOT / "start").exists():
        subprocess.Popen([str(ROOT / "start"), str(copy)], start_new_session=True)


def describe():
    found = resource()
    if found is None:
        fail(NOT_FOUND)
    found["step"] = min(found["step"] + 1, len(found["steps"]) - 1)
    save("resource.json", found)
    state, *workers = found["steps"][found["step"]].split()
    done = bool(workers) and all(word.startswith("exited:0") for word in workers)
    if done and (ROOT / "finish").exists():
        shutil.copytree(ROOT / "finish", ROOT / "run", dirs_exist_ok=True)
    if state == "gone":
        save("resource.json", None)
        save("last.json", found)
        fail(NOT_FOUND)
    node = {"nodeSpec": [{"node": {"labels": found["labels"]}}]}
    print(json.dumps({"name": "it", "state": {"state": state}, "tpu": node}))


def statuses():
    found = resource() or load("last.json", None)
    if found is None:
        return
    attempt = found["labels"]["launch-attempt"]
    _, *workers = found["steps"][max(0, found["step"])].split()
    for number, word in enumerate(workers):
        if word != "-":
            # A worker that lives says so with another time; one that is silent does not.
            beat = 0 if word.endswith("!") else found["step"]
            print(attempt, number, beat, word.rstrip("!").replace(":", " "))


def object_path(address):
    return ROOT / "objects" / urllib.parse.quote(address, safe="*")


def copy(source, target):
    if target.startswith("gs://"):
        object_path(target).parent.mkdir(exist_ok=True)
        shutil.copy(source, object_path(target))
    elif object_path(source).exists():
        shutil.copy(object_path(source), target)
    else:
        fail("ERROR: The following URLs matched no objects or files")


def cat(arguments):
    address = arguments[-1]
    if (ROOT / "lives.json").exists() and address.endswith(".status"):
        statuses()
        return
    pattern = object_path(address).name
    found = sorted((ROOT / "objects").glob("*")) if (ROOT / "objects").exists() else []
    found = [path for path in found if fnmatch.fnmatchcase(path.name, pattern)]
    if not found:
        fail("ERROR: The following URLs matched no objects or files")
    sys.stdout.buffer.write(b"".join(path.read_bytes() for path in found))


def main(arguments):
    with (ROOT / "calls.jsonl").open("a") as calls:
        print(json.dumps(arguments), file=calls)
    interrupt(len((ROOT / "calls.jsonl").read_text().splitlines()) - 1)
    injected(arguments)
    match [word for word in arguments if not word.startswith("-")]:
        case ["compute", "tpus", "queued-resources", "create", _]:
            create(arguments)
        case ["compute", "tpus", "queued-resources", "describe", _]:
            describe()
        case ["compute", "tpus", "queued-resources", "delete", _]:
            if resource() is None:
                fail(NOT_FOUND)
            save("last.json", resource())
            save("resource.json", None)
        case ["compute", "tpus", "tpu-vm", "ssh", _]:
            print("what the journal holds")
        case ["storage", "cp", source, target]:
            copy(source, target)
        case ["storage", "cat", _]:
            cat(arguments)
        case ["secrets", "versions", "access", _]:
            print("the-secret-value", end="")
        case _:
            fail(f"ERROR: unrecognized arguments: {arguments}", 2)


if __name__ == "__main__":
    main(sys.argv[2:])
