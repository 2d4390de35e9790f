"""A Google Cloud in a folder, for the tests of tpu_scripts.

GCLOUD_STUB is the folder:

    calls.jsonl    every call, as a list of words
    state.json     queued resources, instances, groups, templates, policies
    bucket/        gs://, one folder for each bucket
    vm/NAME-N/     the disk of a machine: home, metadata, what systemd was told
    faults/NAME    what goes wrong: a file with a count, a message or a state

A machine's commands are really run, with its folder as home.
"""

import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from gcloud_reference import COMMANDS
from gcloud_reference import EVERYWHERE
from gcloud_reference import SWITCHES

STUB = pathlib.Path(__file__).resolve().parent / "stub"
ROOT = pathlib.Path(os.environ["GCLOUD_STUB"])
BUCKETS, VMS, FAULTS = ROOT / "bucket", ROOT / "vm", ROOT / "faults"
# A state is entered at each look at the resource.
QUEUE = ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
NO_OBJECTS = "matched no objects or files:"
INSTANCE = ["PROVISIONING", "STAGING", "RUNNING"]


class CallError(Exception):
    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


def parse(words):
    """Returns the command, its positional words and its flags."""
    for length in range(5, 1, -1):
        command = " ".join(words[:length])
        if command in COMMANDS:
            break
    else:
        raise CallError(f"Invalid choice: {' '.join(words[:4])}", 2)
    documented, required = COMMANDS[command]
    positional, flags = [], {}
    for word in words[length:]:
        if not word.startswith("--"):
            positional.append(word)
            continue
        name, equals, value = word.partition("=")
        if name not in documented | EVERYWHERE:
            raise CallError(f"unrecognized arguments: {word}", 2)
        if bool(equals) == (name in SWITCHES):
            raise CallError(f"argument {name}: wrong number of values", 2)
        flags[name] = value
    if missing := sorted(required - set(flags)):
        raise CallError(f"argument {missing[0]}: Must be specified.", 2)
    if command.startswith("compute") and "--project" not in flags:
        raise CallError("argument --project: Must be specified.", 2)
    return command, positional, flags


def pairs(text):
    return dict(part.split("=", 1) for part in text.split(",")) if text else {}


def fault(name, count=True):
    """Returns the text of an injected fault; counts it down if it has one."""
    path = FAULTS / name
    if not path.exists():
        return None
    text = path.read_text().strip()
    if count and text.isdigit():
        if int(text) <= 1:
            path.unlink()
        else:
            path.write_text(str(int(text) - 1))
    return text


class State:
    """The resources of the project, by kind and name."""

    KINDS = ("queued", "instance", "group", "template", "policy")

    def __enter__(self):
        self.lock = open(ROOT / "lock", "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        path = ROOT / "state.json"
        self.all = json.loads(path.read_text()) if path.exists() else {}
        for kind in self.KINDS:
            self.all.setdefault(kind, {})
        return self

    def __exit__(self, *exception):
        (ROOT / "state.json").write_text(json.dumps(self.all, indent=1))
        self.lock.close()

    def get(self, kind, name):
        if name not in self.all[kind]:
            raise CallError(
                f"NOT_FOUND: Resource '{kind}/{name}' was not found"
                if kind == "queued"
                else f"Could not fetch resource:\n - The resource '{name}' was "
                "not found"
            )
        return self.all[kind][name]

    def add(self, kind, name, value):
        if name in self.all[kind]:
            raise CallError(f"ALREADY_EXISTS: Resource '{name}' already exists")
        self.all[kind][name] = value


def show(value, expression):
    """Prints the projection of a --format as gcloud does."""
    match = re.fullmatch(r"value(\[separator='(.)'\])?\((.*)\)", expression)
    columns = re.findall(r"[\w.\[\]]+(?:\([^)]*\))?", match[3])
    print((match[2] or "\t").join(_column(value, text) for text in columns))


def _column(value, text):
    path, _, call = text.partition("(")
    function = None
    if call:
        path, _, function = path.rpartition(".")
    for key in re.findall(r"\w+", path):
        if isinstance(value, list):
            value = value[int(key)] if int(key) < len(value) else None
        else:
            value = (value or {}).get(key)
    if function == "basename":
        value = (value or "").split("/")[-1]
    elif function == "len":
        value = len(value or [])
    elif function == "yesno":
        value = "True" if value else ""
    return "" if value is None else str(value)


# Machines ------------------------------------------------------------------


def boot(name, workers, metadata):
    """Makes the folders of machines and runs their startup script."""
    for worker in range(workers):
        folder = VMS / f"{name}-{worker}"
        (folder / "home").mkdir(parents=True)
        (folder / "metadata").mkdir()
        values = metadata | {"agent-worker-number": str(worker)}
        for key, value in values.items():
            (folder / "metadata" / key).write_text(value)
        run_on(folder, values["startup-script"], check=True)


def run_on(folder, command, check=False, capture=True):
    environment = {
        "PATH": f"{STUB / 'vm'}:{STUB}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder / "home"),
        "STUB_VM": str(folder),
        "STUB_PYTHON": os.environ.get("STUB_PYTHON", ""),
        "WATCHDOG_STATE": str(folder / "watchdog"),
        "GCLOUD_STUB": str(ROOT),
        "GRACE_SECONDS": "0.2",
    }
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder / "home",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=capture,
        text=True,
        check=check,
    )


def processes(folder):
    """The processes of a machine: they have its folder in their environment."""
    mark = f"STUB_VM={folder}".encode()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes().split(b"\0"):
                yield int(path.name)
        except OSError:
            continue


def shut_down(name, notice=True):
    """Says TERM to all processes of machines, then KILL; wipes the disks."""
    for folder in VMS.glob(f"{name}-[0-9]*"):
        wanted = [signal.SIGTERM] * notice + [signal.SIGKILL]
        for number in wanted:
            for process in processes(folder):
                try:
                    os.kill(process, number)
                except ProcessLookupError:
                    pass
            deadline = time.monotonic() + 5
            while any(processes(folder)) and time.monotonic() < deadline:
                time.sleep(0.02)
        shutil.rmtree(folder, ignore_errors=True)


def preempt(state):
    """Takes the machines away, if a fault says so."""
    if not (FAULTS / "preempt").exists():
        return
    (FAULTS / "preempt").unlink()
    for queued in state.all["queued"].values():
        queued["state"]["state"] = "SUSPENDED"
        queued["node"]["state"] = "PREEMPTED"
        shut_down(queued["tpu"]["nodeSpec"][0]["nodeId"])
    for name, instance in state.all["instance"].items():
        instance["status"] = "TERMINATED"
        shut_down(name)


def metadata_of(flags):
    metadata = pairs(flags.get("--metadata", ""))
    for key, path in pairs(flags.get("--metadata-from-file", "")).items():
        metadata[key] = pathlib.Path(path).read_text()
    return metadata


def advance(current, order, fault_name):
    """The state after `current`, unless a fault holds it."""
    held = fault(fault_name)
    if held == current or current not in order[:-1]:
        return current
    return order[order.index(current) + 1]


# Commands ------------------------------------------------------------------


def create_error(when):
    if (FAULTS / when).exists():
        message = (FAULTS / when).read_text()
        (FAULTS / when).unlink()
        raise CallError(message)


def queued_create(state, words, flags):
    create_error("create_error")
    (name,) = words
    chip, size = flags["--accelerator-type"].split("-")
    workers = 1 if int(size) <= 8 else int(size) // {"v5p": 8}.get(chip, 4)
    state.add(
        "queued",
        name,
        {
            "name": f"projects/p/locations/z/queuedResources/{name}",
            "state": {"state": QUEUE[0]},
            "tpu": {
                "nodeSpec": [
                    {
                        "nodeId": flags["--node-id"],
                        "node": {"labels": pairs(flags.get("--labels", ""))},
                    }
                ]
            },
            "node": {"state": "CREATING", "networkEndpoints": [{}] * workers},
            "metadata": metadata_of(flags),
        },
    )
    create_error("create_error_after")


def queued_describe(state, words, flags):
    queued = state.get("queued", words[0])
    now = queued["state"]
    if message := fault("queue_fails"):
        queued["state"] = {
            "state": "FAILED",
            "failedData": {"error": {"message": message}},
        }
    else:
        now["state"] = advance(now["state"], QUEUE, "queue_stays")
        if now["state"] == "ACTIVE" and queued["node"]["state"] == "CREATING":
            queued["node"]["state"] = "READY"
            boot(
                queued["tpu"]["nodeSpec"][0]["nodeId"],
                len(queued["node"]["networkEndpoints"]),
                queued["metadata"],
            )
    show(queued, flags["--format"])


def queued_delete(state, words, flags):
    queued = state.get("queued", words[0])
    if "--force" not in flags and queued["state"]["state"] == "ACTIVE":
        raise CallError("FAILED_PRECONDITION: nodes must be deleted first")
    shut_down(queued["tpu"]["nodeSpec"][0]["nodeId"])
    del state.all["queued"][words[0]]


def node_of(state, name):
    for queued in state.all["queued"].values():
        node = queued["tpu"]["nodeSpec"][0]["nodeId"]
        if node == name and queued["node"]["state"] != "CREATING":
            return queued["node"]
    raise CallError(f"NOT_FOUND: Resource 'nodes/{name}' was not found")


def instance_create(state, words, flags):
    create_error("create_error")
    state.add(
        "instance",
        words[0],
        {
            "name": words[0],
            "status": INSTANCE[0],
            "labels": pairs(flags.get("--labels", "")),
            "metadata": metadata_of(flags),
        },
    )


def instance_advance(instance):
    before = instance["status"]
    instance["status"] = advance(before, INSTANCE, "queue_stays")
    if instance["status"] == "RUNNING" != before:
        boot(instance["name"], 1, instance["metadata"])


def instance_describe(state, words, flags):
    instance = state.get("instance", words[0])
    instance_advance(instance)
    show(instance, flags["--format"])


def instance_delete(state, words, flags):
    state.get("instance", words[0])
    shut_down(words[0])
    del state.all["instance"][words[0]]


def group_create(state, words, flags):
    (name,) = words
    template = state.get("template", flags["--template"].split("/")[-1])
    state.get("policy", flags["--workload-policy"].split("/")[-1])
    state.add(
        "group", name, {"name": name, "description": flags["--description"]}
    )
    for number in range(int(flags["--size"])):
        instance = {
            "status": INSTANCE[0],
            "name": f"{name}-{number:04}",
            "instance": f"https://compute/{name}-{number:04}",
            "group": name,
        }
        state.add("instance", instance["name"], template | instance)


def members(state, group):
    return [
        instance
        for _, instance in sorted(state.all["instance"].items())
        if instance.get("group") == group
    ]


def group_delete(state, words, flags):
    state.get("group", words[0])
    for instance in members(state, words[0]):
        shut_down(instance["name"])
        del state.all["instance"][instance["name"]]
    del state.all["group"][words[0]]


def group_list_instances(state, words, flags):
    state.get("group", words[0])
    for number, instance in enumerate(members(state, words[0])):
        instance_advance(instance)
        metadata = VMS / f"{instance['name']}-0" / "metadata"
        if metadata.exists():
            (metadata / "agent-worker-number").write_text(str(number))
        show(
            instance | {"instanceStatus": instance["status"]}, flags["--format"]
        )


def add_described(kind):
    def add(state, words, flags):
        state.add(
            kind,
            words[0],
            {
                "description": flags["--description"],
                "labels": pairs(flags.get("--labels", "")),
                "metadata": metadata_of(flags),
            },
        )

    return add


def describe(kind):
    def run(state, words, flags):
        show(state.get(kind, words[0]), flags["--format"])

    return run


def delete(kind):
    def run(state, words, flags):
        state.get(kind, words[0])
        del state.all[kind][words[0]]

    return run


def listing(kind):
    def run(state, words, flags):
        for _, value in sorted(state.all[kind].items()):
            show(value, flags["--format"])

    return run


def known(kind):
    """Something of Google's: there unless a fault says that it is not."""

    def run(state, words, flags):
        if fault(f"no_{kind}"):
            raise CallError(f"NOT_FOUND: {kind} was not found")
        print({"bucket": "US-WEST4"}.get(kind, kind))

    return run


def ssh_error(code):
    message = f"[/usr/bin/ssh] exited with return code [{code}]."
    return CallError(message, code)


def ssh(names, command):
    """Runs a command on machines at the same time; prints what they print."""
    if fault("ssh_down"):
        raise ssh_error(255)
    folders = [VMS / name for name in names]
    if len(folders) == 1 and not (FAULTS / "ssh_cut").exists():
        code = run_on(folders[0], command, capture=False).returncode
        if code:
            raise ssh_error(code)
        return
    code = 0
    children = []
    for folder in folders:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            result = run_on(folder, command)
            os.write(write, (result.stdout + result.stderr).encode())
            os._exit(result.returncode)
        os.close(write)
        children.append((child, read))
    for child, read in children:
        with os.fdopen(read) as file:
            text = file.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        code = code or status
        if not (FAULTS / "ssh_cut").exists():
            print(text, end="", flush=True)
    if fault("ssh_cut"):
        raise ssh_error(255)
    if code:
        raise ssh_error(code)


# The bucket ------------------------------------------------------------------


def local(url):
    if not url.startswith("gs://"):
        return pathlib.Path(url)
    path = BUCKETS / url.removeprefix("gs://")
    bucket = url.removeprefix("gs://").split("/")[0]
    if not (BUCKETS / bucket).is_dir():
        raise CallError(f"gs://{bucket} not found: 404.")
    return path


def put(source, target):
    """An object is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, unfinished)
    unfinished.replace(target)


def storage_cp(words, flags):
    *sources, destination = words
    target = local(destination)
    into = destination.endswith("/") or target.is_dir() or len(sources) > 1
    for word in sources:
        source = local(word)
        name = word.rstrip("/").split("/")[-1]
        if source.is_dir():
            if "--recursive" not in flags:
                raise CallError(f"{word} is a directory")
            for path in sorted(source.rglob("*")):
                if path.is_file():
                    base = target / name if into else target
                    put(path, base / path.relative_to(source))
        elif not source.is_file():
            raise CallError(f"The following URLs {NO_OBJECTS}\n{word}")
        else:
            if into and not destination.startswith("gs://"):
                target.mkdir(parents=True, exist_ok=True)
            put(source, target / name if into else target)
        if "/objects/" in destination:
            cut_upload()


def cut_upload():
    """Kills a machine in the middle of an upload, if a fault says so."""
    if fault("kill_uploader"):
        for process in processes(pathlib.Path(os.environ["STUB_VM"])):
            if process != os.getpid():
                os.kill(process, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def storage(verb, words, flags):
    if fault("bucket_down"):
        raise CallError("HTTPError 503: backend error")
    if verb == "buckets describe":
        local(words[0])
        if not fault("no_bucket"):
            print("US-WEST4")
            return
        raise CallError(f"{words[0]} not found: 404.")
    if verb == "cp":
        storage_cp(words, flags)
    elif verb == "rsync":
        source, target = map(local, words)
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source)
            if path.is_file() and not (
                "--exclude" in flags and re.match(flags["--exclude"], str(name))
            ):
                put(path, target / name)
    else:
        for word in words:
            path = local(word)
            if not path.exists():
                raise CallError(f"The following URLs {NO_OBJECTS}\n{word}")
            if verb == "cat":
                print(path.read_text(), end="")
            elif verb == "ls" and path.is_dir():
                for child in sorted(path.iterdir()):
                    print(f"{word.rstrip('/')}/{child.name}")
            elif verb == "rm":
                path.unlink()
            else:
                print(word)


HANDLERS = {
    "compute tpus queued-resources create": queued_create,
    "compute tpus queued-resources describe": queued_describe,
    "compute tpus queued-resources delete": queued_delete,
    "compute tpus queued-resources list": listing("queued"),
    "compute tpus tpu-vm accelerator-types describe": known("accelerator"),
    "compute tpus tpu-vm versions describe": known("version"),
    "compute instances create": instance_create,
    "compute instances describe": instance_describe,
    "compute instances delete": instance_delete,
    "compute instances list": listing("instance"),
    "compute instance-templates create": add_described("template"),
    "compute instance-templates describe": describe("template"),
    "compute instance-templates delete": delete("template"),
    "compute resource-policies create workload-policy": add_described("policy"),
    "compute resource-policies describe": describe("policy"),
    "compute resource-policies delete": delete("policy"),
    "compute instance-groups managed create": group_create,
    "compute instance-groups managed describe": describe("group"),
    "compute instance-groups managed delete": group_delete,
    "compute instance-groups managed list": listing("group"),
    "compute instance-groups managed list-instances": group_list_instances,
    "compute machine-types describe": known("machine"),
    "compute images describe-from-family": known("image"),
    "auth list": known("account"),
    "projects describe": known("project"),
    "projects get-iam-policy": known("role"),
    "billing projects describe": known("billing"),
    "services list": known("service"),
}


def main(words):
    with open(ROOT / "calls.jsonl", "a") as file:
        file.write(json.dumps(words) + "\n")
    command, positional, flags = parse(words)
    if command.startswith("storage"):
        storage(command.removeprefix("storage "), positional, flags)
        return
    with State() as state:
        preempt(state)
        if "describe" in command and fault("api_down"):
            raise CallError("UNAVAILABLE: the service is currently unavailable")
        if command == "compute tpus tpu-vm describe":
            show(node_of(state, positional[0]), flags["--format"])
        elif command == "compute tpus tpu-vm ssh":
            node = node_of(state, positional[0])
            if node["state"] != "READY":
                raise CallError(f"node is {node['state']}")
            count = len(node["networkEndpoints"])
            worker = flags.get("--worker", "0")
            numbers = range(count) if worker == "all" else [int(worker)]
            names = [f"{positional[0]}-{number}" for number in numbers]
        elif command == "compute ssh":
            if state.get("instance", positional[0])["status"] != "RUNNING":
                raise CallError("instance is not running", 255)
            names = [f"{positional[0]}-0"]
        else:
            HANDLERS[command](state, positional, flags)
            if "delete" in command and fault("delete_error"):
                raise CallError("INTERNAL: try again")
    if command.endswith(" ssh"):
        ssh(names, flags["--command"])


def run(words):
    """Does what gcloud would do with a command line; returns its status."""
    try:
        main(words)
    except CallError as error:
        print(f"ERROR: (gcloud) {error}", file=sys.stderr)
        return error.code
    return 0
