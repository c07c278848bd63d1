#!/usr/bin/env python3
"""Measures the release binary beside age, gpg, openssl, cp, curl and nginx: the same work, interleaved, as ratios.

Usage: bench.py [seal] [open] [relay] [small] [queued] [collect] [crowd] [records] [consent] [--size MIB] [--rounds N] [--count N] [--dir DIR]
Each line: what, best seconds, CPU seconds (user+system), peak memory, and the ratios to the named peer (above 1: faster): of the best
times, and in brackets the median of the rounds' own.
"""
import argparse
import csv
import glob
import hashlib
import itertools
import json
import os
import shutil
import signal
import statistics
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

import collect
import visits

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SALLYPORT = os.path.join(ROOT, ".build-release", "release", "sallyport")


def run(command, stdin=None):
    """One run: (seconds, CPU seconds, peak KiB)."""
    start = time.monotonic()
    with open(stdin or os.devnull, "rb") as source, open(os.devnull, "wb") as null:
        process = subprocess.Popen(command, stdin=source, stdout=null, stderr=subprocess.PIPE)
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
    if status:
        sys.exit(f"bench: {' '.join(command)}: {errors.decode(errors='replace')}")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def cpu(pid):
    """CPU seconds of a process so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_of_children(pid):
    """CPU seconds so far of a process's children that run."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return sum(cpu(int(child)) for child in file.read().split())


def interleave(cases, rounds, before=lambda name: None):
    """Runs every case once a round: for each its (seconds, CPU seconds, peak KiB) by round."""
    runs = {name: [] for name in cases}
    for _ in range(rounds):
        for name, command in cases.items():
            before(name)
            runs[name].append(command() if callable(command) else run(command))
    return runs


def report(title, runs, peers, size=None):
    """The best time, the least CPU and the highest memory of each case, and its ratios: of the best times, and in brackets the median of
    the rounds' own, which a machine that is slow now and then disturbs least."""
    print(f"\n{title}")
    for name, own in runs.items():
        seconds, cpu, peak = min(r[0] for r in own), min(r[1] for r in own), max(r[2] for r in own)
        rate = f"{size / seconds / 1e9:6.2f} GB/s" if size else ""
        ratios = "  ".join(
            f"{min(r[0] for r in runs[p]) / seconds:.2f}x [{statistics.median(r[0] / o[0] for r, o in zip(runs[p], own)):.2f}x] {p}"
            for p in peers if p in runs and p != name)
        print(f"  {name:34} {seconds:8.3f} s {rate}  CPU {cpu:7.3f} s  {peak / 1024:6.1f} MiB   {ratios}", flush=True)


def bench_seal(directory, size, rounds, opening):
    plain = os.path.join(directory, "plain")
    with open(plain, "wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    identity = os.path.join(directory, "identity")
    subprocess.run([SALLYPORT, "keys", "generate", "--classical", "-o", identity], check=True, stdout=subprocess.DEVNULL)
    recipient = next(line.split()[-1] for line in open(identity) if line.startswith("# public key"))
    out = os.path.join(directory, "out")

    def clean(_):
        for name in os.listdir(directory):
            if name.startswith("out"):
                os.unlink(os.path.join(directory, name))

    def shell(text):
        return ["/bin/sh", "-c", text]

    seal = [SALLYPORT, "seal", plain, "-r", recipient, "-o"]
    openssl = ["openssl", "enc", "-aes-256-ctr", "-K", "0" * 64, "-iv", "0" * 32]
    gpg = ["gpg", "--batch", "--yes", "--homedir", directory, "--passphrase", "x", "--pinentry-mode", "loopback"]
    if not opening:
        cases = {
            "sallyport seal": seal + [out],
            "age -r": ["age", "-r", recipient, "-o", out, plain],
            "cp": ["cp", plain, out],
            "openssl enc -aes-256-ctr": [*openssl, "-in", plain, "-out", out],
            "gpg --symmetric": [*gpg, "--compress-algo", "none", "-o", out, "--symmetric", plain],
        }
        report(f"seal {size >> 20} MiB, file to file", interleave(cases, rounds, clean), ["age -r", "cp"], size)
        cases = {
            "sallyport seal --sync": seal + [out, "--sync"],
            "cp, then fdatasync": ["dd", f"if={plain}", f"of={out}", "bs=1M", "conv=fdatasync", "status=none"],
        }
        report("seal, durable", interleave(cases, rounds, clean), ["cp, then fdatasync"], size)
        cases = {
            "sallyport seal >null": seal + ["/dev/null"],
            "sallyport seal >null, 1 thread": seal + ["/dev/null", "--workers", "1"],
            "age -r >null": ["age", "-r", recipient, "-o", "/dev/null", plain],
            "age | sha256": shell(f"age -r {recipient} {plain} | openssl sha256"),
        }
        report("seal to /dev/null", interleave(cases, rounds, clean), ["age -r >null", "age | sha256", "sallyport seal >null, 1 thread"], size)
    else:
        sealed, encrypted, symmetric = (os.path.join(directory, name) for name in ["sealed", "encrypted", "symmetric"])
        subprocess.run(seal + [sealed], check=True)
        subprocess.run([*openssl, "-in", plain, "-out", encrypted], check=True)
        subprocess.run([*gpg, "--compress-algo", "none", "-o", symmetric, "--symmetric", plain], check=True, stderr=subprocess.DEVNULL)
        cases = {
            "sallyport open": [SALLYPORT, "open", sealed, "-i", identity, "-o", out],
            "age -d": ["age", "-d", "-i", identity, "-o", out, sealed],
            "cp": ["cp", sealed, out],
            "openssl enc -d -aes-256-ctr": [*openssl, "-d", "-in", encrypted, "-out", out],
            "gpg --decrypt": [*gpg, "-o", out, "--decrypt", symmetric],
        }
        report(f"open {size >> 20} MiB, file to file", interleave(cases, rounds, clean), ["age -d", "cp"], size)


class Pair:
    """Two agencies with one agreement, set up by the command as an administrator would."""

    def __init__(self, directory):
        self.homes = {}
        self.processes = []
        ports = {}
        for name in ["sender", "recipient"]:
            home = os.path.join(directory, name)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                ports[name] = probe.getsockname()[1]
            self.command("init", "--agency", f"{name}.example.gov", "--home", home, "--listen", f"127.0.0.1:{ports[name]}",
                         "--endpoint", f"https://127.0.0.1:{ports[name]}")
            with open(os.path.join(home, "sallyport.yaml"), "a") as file:
                file.write("logLevel: error\nscanSeconds: 1\npackagesPerPartner: 256\n")
            with open(os.path.join(ROOT, "policies", "demo-files.v1.yaml")) as source:
                text = source.read().replace("registry.demo.example", "sender.example.gov").replace("benefits.demo.example", "recipient.example.gov")
            with open(os.path.join(home, "policies", "agreement.yaml"), "w") as file:
                file.write(text)
            os.chmod(os.path.join(home, "policies", "agreement.yaml"), 0o644)
            self.homes[name] = home
        for name, other in [("sender", "recipient"), ("recipient", "sender")]:
            self.command("partners", "add", os.path.join(self.homes[other], "keys", "card.json"), "--home", self.homes[name])
            fingerprint = self.command("keys", "fingerprint", "--home", self.homes[other]).strip()
            self.command("partners", "approve", f"{other}.example.gov", "--fingerprint", fingerprint, "--home", self.homes[name])
        for name, role in [("sender", "data-officer"), ("recipient", "information-sharing-manager")]:
            self.command("agreements", "sign", "demo-files", "--role", role, "--signer", name, "--home", self.homes[name])
        acts = [glob.glob(os.path.join(self.homes[name], "policies", "*.sigs", "*.json")) for name in ["sender", "recipient"]]
        self.command("agreements", "take", *acts[1], "--home", self.homes["sender"])
        self.command("agreements", "take", *acts[0], "--home", self.homes["recipient"])

    def command(self, *arguments):
        return subprocess.run([SALLYPORT, *arguments], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout

    def start(self, which=("recipient", "sender")):
        for name in which:
            process = subprocess.Popen([SALLYPORT, "run", "--home", self.homes[name]], stdout=subprocess.PIPE)
            process.stdout.readline()
            self.processes.append(process)
        while "sender" in which and not os.path.exists(os.path.join(self.outbox, ".sallyport-folder")):
            time.sleep(0.01)

    @property
    def outbox(self):
        return os.path.join(self.homes["sender"], "outbox", "demo-files")

    @property
    def inbox(self):
        return os.path.join(self.homes["recipient"], "inbox", "sender.example.gov", "demo-files")

    def counts(self, name):
        rows = [json.loads(line) for line in self.command("status", "--json", "--home", self.homes[name]).splitlines()]
        return {(r["direction"], r["state"]): r["count"] for r in rows if r["kind"] == "transfers"}

    def memory(self):
        peaks = []
        for process in self.processes:
            with open(f"/proc/{process.pid}/status") as file:
                peaks.append(next(int(line.split()[1]) for line in file if line.startswith("VmHWM")))
        return peaks

    def cpu(self):
        """CPU seconds of all gateways so far."""
        return sum(cpu(process.pid) for process in self.processes)

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait()
        self.processes = []


def nginx(directory):
    """nginx with dav PUT over mutual TLS; its port and the client's curl arguments."""
    key = os.path.join(directory, "tls.key")
    certificate = os.path.join(directory, "tls.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
                    "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
                   check=True, stderr=subprocess.DEVNULL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = os.path.join(directory, "dav")
    os.makedirs(root)
    configuration = os.path.join(directory, "nginx.conf")
    with open(configuration, "w") as file:
        file.write(f"""
user root; worker_processes 2; daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log;
events {{}}
http {{ access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  server {{ listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3; ssl_certificate {certificate}; ssl_certificate_key {key};
    ssl_client_certificate {certificate}; ssl_verify_client on; client_max_body_size 0; root {root};
    location / {{ dav_methods PUT; }} }} }}""")
    process = subprocess.Popen(["/usr/sbin/nginx", "-c", configuration])
    time.sleep(0.5)
    curl = ["curl", "-sS", "--fail", "--tlsv1.3", "--cacert", certificate, "--cert", certificate, "--key", key]
    return process, curl, f"https://localhost:{port}", root


def bench_relay(directory, size, rounds):
    pair = Pair(directory)
    pair.start()
    server, curl, base, root = nginx(os.path.join(directory))
    payload = os.path.join(directory, "payload")
    with open(payload, "wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    ledger = sqlite3.connect(f"file:{pair.homes['sender']}/ledger.sqlite?mode=ro", uri=True)

    def received(name):
        return ledger.execute(
            "SELECT 1 FROM receipts JOIN transfers USING (sender, id) WHERE name = ? AND kind = 'received'", [name]).fetchone()

    try:
        def upload():
            before = cpu_of_children(server.pid)
            start = time.monotonic()
            _, curl_cpu, _ = run([*curl, "-H", "Expect:", "-T", payload, f"{base}/x"])
            descriptor = os.open(os.path.join(root, "x"), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            seconds = time.monotonic() - start
            os.unlink(os.path.join(root, "x"))
            return seconds, curl_cpu + cpu_of_children(server.pid) - before, 0

        def relay():
            number = len(os.listdir(pair.inbox)) if os.path.isdir(pair.inbox) else 0
            name = f"r{number}-{time.monotonic_ns()}"
            shutil.copyfile(payload, os.path.join(directory, name))
            # curl's file is on the disk already too.
            with open(os.path.join(directory, name), "rb") as copy:
                os.fsync(copy.fileno())
            os.rename(os.path.join(directory, name), os.path.join(pair.outbox, name))
            # From the first byte in the recipient's spool until the sender has verified and committed the `received` receipt.
            outcome = os.path.join(pair.homes["sender"], "returned", "demo-files", f"{name}.outcome.json")
            spool_in = os.path.join(pair.homes["recipient"], "spool", "in", "sender.example.gov")
            while not os.path.isdir(spool_in) or not any(n.endswith(".part") for n in os.listdir(spool_in)):
                time.sleep(0.001)
            before = pair.cpu()
            start = time.monotonic()
            while not received(name):
                time.sleep(0.002)
            end = time.monotonic()
            cpu = pair.cpu() - before
            while '"delivered"' not in (open(outcome).read() if os.path.exists(outcome) else ""):
                time.sleep(0.01)
            for arrived in os.listdir(pair.inbox):
                os.unlink(os.path.join(pair.inbox, arrived))
            return end - start, cpu, max(pair.memory())

        report(f"relay {size >> 20} MiB over mutual TLS, spool to durable and verified",
               interleave({"sallyport relay": relay, "curl to nginx (dav PUT, fsync)": upload}, rounds),
               ["curl to nginx (dav PUT, fsync)"], size)
        print(f"  peak memory of the gateways: {', '.join(f'{m / 1024:.0f} MiB' for m in pair.memory())}")
    finally:
        server.terminate()
        server.wait()
        pair.stop()


def bench_small(directory, count):
    pair = Pair(directory)
    pair.start()
    try:
        stage = os.path.join(directory, "stage")
        os.makedirs(stage)
        for index in range(count):
            with open(os.path.join(stage, f"p{index}"), "wb") as file:
                file.write(os.urandom(4096))
        before = pair.cpu()
        start = time.monotonic()
        for index in range(count):
            os.rename(os.path.join(stage, f"p{index}"), os.path.join(pair.outbox, f"p{index}"))
        while pair.counts("sender").get(("out", "confirmed"), 0) < count:
            time.sleep(0.5)
        seconds = time.monotonic() - start
        cpu = pair.cpu() - before
        assert len(os.listdir(pair.inbox)) == count
        print(f"\n{count} packages of 4 KiB, outbox to inbox with signed receipts, both gateways here, full durability")
        print(f"  {seconds:.2f} s: {count / seconds * 60:.0f} a minute; {cpu / count * 1e3:.2f} ms CPU a package; "
              f"peak memory {', '.join(f'{m / 1024:.0f} MiB' for m in pair.memory())}")
        pair.stop()
        pair.start(("recipient",))
        pair.stop()
    finally:
        pair.stop()


def bench_queued(directory, count):
    """A gateway that starts with a long queue: its partner is down."""
    pair = Pair(directory)
    pair.start(("sender",))
    stage = os.path.join(directory, "stage")
    os.makedirs(stage)
    for index in range(count):
        with open(os.path.join(stage, f"q{index}"), "wb") as file:
            file.write(b"queued")
    for index in range(count):
        os.rename(os.path.join(stage, f"q{index}"), os.path.join(pair.outbox, f"q{index}"))
    try:
        while sum(n for (_, state), n in pair.counts("sender").items() if state in ("queued", "sending")) < count:
            time.sleep(0.5)
        pair.stop()
        start = time.monotonic()
        pair.start(("sender",))
        seconds = time.monotonic() - start
        time.sleep(5)
        print(f"\nstart with {count} packages queued: {seconds:.2f} s, then {pair.memory()[0] / 1024:.0f} MiB")
    finally:
        pair.stop()


ORJSON = """
import sys, json, orjson, jsonschema_rs
validator = jsonschema_rs.validator_for(json.load(open(sys.argv[2])), validate_formats=True)
with open(sys.argv[1], "rb") as lines:
    assert all(validator.is_valid(orjson.loads(line)) for line in lines)
"""
FRICTIONLESS = """
import os, sys, frictionless
os.chdir(sys.argv[1])
report = frictionless.Resource(path="few.csv", schema=frictionless.Schema.from_descriptor("visit.table.json")).validate()
assert report.valid, report.flatten(["type"])[:3]
"""
LIBCSV = """
#include <csv.h>
#include <stdio.h>
static size_t fields;
static void field(void *s, size_t n, void *d) { fields++; }
static void row(int c, void *d) {}
int main(int argc, char **argv) {
  struct csv_parser parser;
  static char buffer[1 << 20];
  size_t got;
  FILE *file = fopen(argv[1], "rb");
  csv_init(&parser, CSV_STRICT);
  while ((got = fread(buffer, 1, sizeof buffer, file)) > 0)
    if (csv_parse(&parser, buffer, got, field, row, NULL) != got) return 1;
  csv_fini(&parser, field, row, NULL);
  return fields == 0;
}
"""


def bench_records(directory, count, rounds):
    """Checking records, beside a validator or parser of each format. Python peers come from PyPI into a folder of their own."""
    tools = os.path.join(ROOT, ".build-bench")
    if not os.path.exists(os.path.join(tools, "frictionless")):
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, "orjson==3.13.0", "jsonschema-rs==0.60.3",
                        "frictionless==5.21.0"], check=True)
    os.environ["PYTHONPATH"] = tools
    visits.write(directory, count)
    place = lambda name: os.path.join(directory, name)
    check = lambda file, schema, *rest: [SALLYPORT, "schemas", "check", place(file), "--schema", place(schema), *rest]
    with open(place("few.csv"), "w", newline="") as few, open(place("visits.csv"), newline="") as rows:
        csv.writer(few).writerows(itertools.islice(csv.reader(rows), 5000))
    with open(place("one.ndjson"), "w") as one_record, open(place("visits.ndjson")) as lines:
        one_record.write(next(lines))
    with open(place("libcsv.c"), "w") as source:
        source.write(LIBCSV)
    subprocess.run(["gcc", "-O2", "-w", "-o", place("libcsv"), place("libcsv.c"), "-lcsv"], check=True)
    one = ["--workers", "1"]

    def anew(_):
        # Replacing a file makes ext4 write it out at once, and frees the old one.
        if os.path.exists(place("filtered.ndjson")):
            os.remove(place("filtered.ndjson"))

    ndjson = interleave({
        "sallyport, 1 core": check("visits.ndjson", "visit.schema.json", *one),
        "sallyport, 2 cores": check("visits.ndjson", "visit.schema.json", "--workers", "2"),
        "sallyport, 1 core, filtered, written": [SALLYPORT, "schemas", "check", place("visits.ndjson"), "--agreement", visit_agreement(directory),
                                                 "--output", place("filtered.ndjson"), *one],
        "orjson + jsonschema-rs": [sys.executable, "-c", ORJSON, place("visits.ndjson"), place("visit.schema.json")]}, rounds, anew)
    report("check one record: what the program itself takes", interleave({"sallyport": check("one.ndjson", "visit.schema.json", *one)}, rounds), [])
    report("check NDJSON", ndjson, ["orjson + jsonschema-rs", "sallyport, 1 core"], os.path.getsize(place("visits.ndjson")))
    report("check CSV", interleave({
        "sallyport, 1 core": check("visits.csv", "visit.table.json", *one),
        "sallyport, 2 cores": check("visits.csv", "visit.table.json", "--workers", "2"),
        "libcsv, parsing only": [place("libcsv"), place("visits.csv")]}, rounds),
        ["libcsv, parsing only", "sallyport, 1 core"], os.path.getsize(place("visits.csv")))
    frictionless = run([sys.executable, "-c", FRICTIONLESS, directory])
    rate = os.path.getsize(place("few.csv")) / frictionless[0]
    print(f"  frictionless validate (a part of the file)  {rate / 1e6:.1f} MB/s")
    report("check XML, 1 core", interleave({
        "sallyport": check("visits.xml", "visit.xsd"),
        "xmllint --stream --schema": ["xmllint", "--stream", "--noout", "--schema", place("visit.xsd"), place("visits.xml")]}, rounds),
        ["xmllint --stream --schema"], os.path.getsize(place("visits.xml")))
    box = visit_box(place("box"), filtered=False, agreed=1)
    try:
        report("whole pass over the NDJSON file, outbox to mailbox, 2 cores", interleave({
            "checked and sealed": passing(box, "visits", directory), "sealed": passing(box, "c0", directory)}, rounds),
            ["sealed"], os.path.getsize(place("visits.ndjson")))
    finally:
        box.stop()


DROPPED = ["contact.email", "contact.phone", "address.street", "notes"]


def bench_collect(directory, size, rounds):
    """curl from the mailbox beside curl from nginx, both over mutual TLS."""
    mailbox = collect.Mailbox(SALLYPORT, ROOT, directory)
    server, curl, base, root = nginx(directory)
    try:
        payload = os.path.join(directory, "payload.bin")
        with open(payload, "wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        os.link(payload, os.path.join(directory, "twin"))
        os.rename(os.path.join(directory, "twin"), os.path.join(root, "x"))
        shutil.copyfile(payload, payload + ".copy")
        os.unlink(payload)
        os.rename(payload + ".copy", payload)
        transfer = mailbox.offer(payload)
        report(f"collecting {size >> 20} MiB over mutual TLS, one connection, to /dev/null", interleave({
            "curl from sallyport": [*mailbox.curl(), f"{mailbox.url}/v1/transfers/{transfer}/body", "-o", os.devnull],
            "curl from nginx": [*curl, f"{base}/x", "-o", os.devnull],
        }, rounds), ["curl from nginx"], size)
        print(f"  peak memory of the gateway: {mailbox.memory() / 1024:.0f} MiB")
    finally:
        server.terminate()
        server.wait()
        mailbox.stop()


def bench_crowd(directory, partners, downloading, size, seconds):
    """Many partners that poll at once, some of which download; memory and the latency of a list."""
    mailbox = collect.Mailbox(SALLYPORT, ROOT, directory, partners, downloading)
    try:
        downloads = []
        for number in range(downloading):
            path = os.path.join(directory, f"d{number}")
            with open(path, "wb") as file:
                file.write(os.urandom(1 << 20) * (size >> 20))
            downloads.append((number, mailbox.offer(path, number), size + (size >> 16) * 16))
        print(f"\n{partners} partners asking once a second, {downloading} of them downloading {size >> 20} MiB; the clients on the same cores")
        for together in [False, True]:
            times, failures, whole = collect.crowd(mailbox, range(partners), downloads, seconds, together)
            print(f"  {'all in the same moment' if together else 'spread over the second':24}  {len(times)} lists, {len(failures)} failures {failures[:3]}, "
                  f"{whole} downloads whole; median {times[len(times) // 2] * 1e3:.1f} ms, p99 {times[len(times) * 99 // 100] * 1e3:.1f} ms, "
                  f"most {times[-1] * 1e3:.0f} ms")
        print(f"  peak memory of the gateway {mailbox.memory() / 1024:.0f} MiB")
    finally:
        mailbox.stop()


def visit_agreement(directory, sender="sender.example.gov", recipient="recipient.example.gov", consent="{ model: none }", filtered=True):
    """The visits' agreement with its schema beside it: four fields stay here when it is filtered."""
    os.makedirs(os.path.join(directory, "schemas"), exist_ok=True)
    shutil.copy(os.path.join(directory, "visit.schema.json"), os.path.join(directory, "schemas"))
    with open(os.path.join(directory, "visit.schema.json"), "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    with open(os.path.join(ROOT, "policies", "demo-files.v1.yaml")) as source:
        text = source.read().replace("registry.demo.example", sender).replace("benefits.demo.example", recipient)
    names = ["id", "patientId", "given", "family", "birthDate", "sex", "contact.email", "contact.phone", "address.street", "address.postcode",
             "address.city", "address.country", "clinic", "arrived", "left", "diagnosis", "severity", "cost", "insured", "notes", "codes"]
    fields = "".join(f'  - {{ name: {name}, category: "ext:X", action: {"drop" if filtered and name in DROPPED else "pass"} }}\n' for name in names)
    text = text.replace("consent: { model: none }", f"consent: {consent}").replace("demo-files", "visits").replace(
        "frequency: ongoing }", "frequency: ongoing, identifier: { field: patientId, type: patient } }").replace(
        'mediaType: "application/octet-stream" }', 'mediaType: "application/x-ndjson", format: ndjson, schema: "schemas/visit.schema.json", '
        f'schemaSha256: "sha256:{digest}" }}')
    if "opt-in" in consent:
        text = text.replace("dpv:PublicInterest", "dpv:Consent")
    path = os.path.join(directory, "visits.yaml")
    with open(path, "w") as file:
        file.write(text + "fields:\n" + fields)
    return path


def visit_box(directory, consent="{ model: none }", filtered=True, agreed=0):
    """A gateway whose first partner may collect visits."""
    os.mkdir(directory)
    box = collect.Mailbox(SALLYPORT, ROOT, directory, agreed=agreed)
    shutil.copy(os.path.join(os.path.dirname(directory), "visit.schema.json"), directory)
    with open(visit_agreement(directory, collect.SENDER, "p0.example.gov", consent, filtered)) as file:
        text = file.read()
    shutil.copytree(os.path.join(directory, "schemas"), os.path.join(box.home, "policies", "schemas"), dirs_exist_ok=True)
    os.system(f"chmod -R go-w '{box.home}/policies'")
    box.agree("visits", text, "p0.example.gov")
    return box


def passing(box, agreement, directory):
    """The whole pass over the visits, outbox to mailbox."""
    def run():
        path = os.path.join(directory, f"visits-{time.monotonic_ns()}.ndjson")
        shutil.copy(os.path.join(directory, "visits.ndjson"), path)
        # What is measured is not the disk that takes the copy.
        with open(path, "rb") as copy:
            os.fsync(copy.fileno())
        pid = box.process.pid
        start, before = time.monotonic(), cpu(pid)
        box.offer(path, agreement=agreement)
        return time.monotonic() - start, cpu(pid) - before, box.memory()
    return run


OPT_IN = ('{ model: opt-in, purposeRef: visits, noticeId: n, maxValidity: P365D, maxStaleness: P1D, onStale: hold, onMissing: withhold-record, '
          'withdrawalMethod: "by phone", onWithdrawal: { spooled: reseal, delivered: inform } }')


def bench_consent(directory, people, count, rounds):
    """Consent of `people` loaded: look-ups, import, start, a withdrawal, and the whole pass beside the pass without consent."""
    subprocess.run([os.path.join(os.path.dirname(SALLYPORT), "ConsentBench"), str(people)], check=True)
    visits.write(directory, count)
    known = set()
    with open(os.path.join(directory, "visits.ndjson")) as lines:
        known = {json.loads(line)["patientId"] for line in lines}
    events = os.path.join(directory, "events.csv")
    with open(events, "w") as file:
        file.write("source_event_id,subject_id_type,subject_id,agreement,purpose,event,event_time,valid_until,indicated_by,relation,notice_id,language,"
                   "method,scope\n")
        for number, person in enumerate(itertools.chain(known, (f"Q{n:09d}" for n in range(people - len(known))))):
            file.write(f"{number},,{person},visits,visits,ConsentGiven,2026-10-01T00:00:00Z,,,,,,,\n")
    boxes = {}
    try:
        for name, consent in [("with consent", OPT_IN), ("without", "{ model: none }")]:
            boxes[name] = visit_box(os.path.join(directory, name.split()[0]), consent)
        box = boxes["with consent"]
        start = time.monotonic()
        box.command("consent", "import", events, "--agreement", "visits", "--source", "bench")
        print(f"import of {people} people: {time.monotonic() - start:.1f} s; the gateway has {box.memory() / 1024:.0f} MiB at most", flush=True)
        table = os.path.join(box.home, "consents.table")
        for what in ["from the ledger alone", "from the copy of the tables"]:
            box.stop()
            if what == "from the ledger alone" and os.path.exists(table):
                os.unlink(table)
            start = time.monotonic()
            box.start()
            print(f"start with {people} people {what}: {time.monotonic() - start:.1f} s; {box.memory() / 1024:.0f} MiB", flush=True)
            # Fewer people are not copied.
            while people >= 20_000 and not os.path.exists(table):
                if time.monotonic() - start > 120:
                    sys.exit("bench: the tables are not copied")
                time.sleep(0.1)
        # Two commits, so two syncs of the disk: an fdatasync of 4 KiB right before each tells what the disk makes of it.
        withdrawals, syncs = [], []
        for number in range(20):
            with open(os.path.join(directory, "probe"), "wb", buffering=0) as probe:
                probe.write(b"x" * 4096)
                start = time.monotonic()
                os.fdatasync(probe.fileno())
                syncs.append(1000 * (time.monotonic() - start))
            out = box.command("consent", "withdraw", f"Q{number:09d}", "--agreement", "visits", "--json")
            withdrawals.append(json.loads(out)["milliseconds"])
        print(f"withdrawal acknowledged after {sorted(withdrawals)[10]} ms, {max(withdrawals)} at most; "
              f"fdatasync beside it {sorted(syncs)[10]:.0f} ms, {max(syncs):.0f} at most", flush=True)
        report(f"whole pass over {count} records (validate, consent, project, seal), outbox to mailbox, 2 cores",
               interleave({name: passing(box, "visits", directory) for name, box in boxes.items()}, rounds), ["without"], os.path.getsize(os.path.join(directory, "visits.ndjson")))
    finally:
        for box in boxes.values():
            box.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["seal", "open", "relay", "small"])
    parser.add_argument("--size", type=int, default=2048, help="MiB for seal and open; relay takes half")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=5000, help="packages for small and queued, fifty times as many records")
    parser.add_argument("--people", type=int, default=10_000_000, help="people for consent")
    parser.add_argument("--dir", help="where the files go; a temporary directory otherwise")
    options = parser.parse_args()
    for what in options.what:
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="spb-") as directory:
            if what in ("seal", "open"):
                bench_seal(directory, options.size << 20, options.rounds, what == "open")
            elif what == "relay":
                bench_relay(directory, options.size << 19, options.rounds)
            elif what == "collect":
                bench_collect(directory, options.size << 20, options.rounds)
            elif what == "crowd":
                bench_crowd(directory, 500, 64, 64 << 20, 20)
            elif what == "small":
                bench_small(directory, options.count)
            elif what == "records":
                bench_records(directory, options.count * 50, options.rounds)
            elif what == "consent":
                bench_consent(directory, options.people, options.count * 50, options.rounds)
            elif what == "queued":
                bench_queued(directory, options.count)
            else:
                parser.error(f"unknown: {what}")


main()
