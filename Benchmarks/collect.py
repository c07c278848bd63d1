"""Partners that collect with stock tools: one gateway, any number of partners known by certificate and age recipient."""
import asyncio
import atexit
import os
import re
import signal
import socket
import ssl
import subprocess
import time

SENDER = "sender.example.gov"


class Mailbox:
    """A gateway and `count` partners without gateways, each with an agreement of its own called c0, c1, …, for those below `agreed`."""

    def __init__(self, sallyport, root, directory, count=1, agreed=1):
        self.sallyport, self.directory, self.home = sallyport, directory, os.path.join(directory, "sender")
        self.cursors = {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self.command("init", "--agency", SENDER, "--listen", f"127.0.0.1:{self.port}", "--endpoint", self.url)
        with open(os.path.join(self.home, "sallyport.yaml"), "a") as file:
            file.write("logLevel: error\nscanSeconds: 1\n")
        self.start()
        identity = subprocess.run(["age-keygen"], capture_output=True, text=True, check=True).stdout
        recipient = re.search("age1[a-z0-9]+", identity).group(0)
        with open(os.path.join(root, "policies", "demo-files.v1.yaml")) as source:
            text = source.read().replace("registry.demo.example", SENDER)
        for number in range(count):
            certificate, key = self.files(number)
            subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                            "-subj", f"/CN=p{number}", "-keyout", key, "-out", certificate], check=True, stderr=subprocess.DEVNULL)
            agency = f"p{number}.example.gov"
            added = self.command("partners", "add", "--agency", agency, "--certificate", certificate, "--recipient", recipient)
            fingerprint = re.search(r"fingerprint +(\S+)", added).group(1)
            self.command("partners", "approve", agency, "--fingerprint", fingerprint)
            if number < agreed:
                self.agree(f"c{number}", text.replace("benefits.demo.example", agency).replace("demo-files", f"c{number}"), agency)

    def agree(self, name, text, agency):
        """Puts an agreement with a partner in force; packages under it wait to be collected."""
        path = os.path.join(self.home, "policies", f"{name}.yaml")
        with open(path, "w") as file:
            file.write(text.replace("mode: relay", "mode: collect"))
        os.chmod(path, 0o600)
        self.command("agreements", "reload")
        self.command("agreements", "sign", name, "--role", "data-officer", "--signer", "Officer")
        self.command("agreements", "sign", name, "--role", "information-sharing-manager", "--signer", "Paper", "--for", agency, "--evidence", "bench")

    def start(self):
        self.process = subprocess.Popen([self.sallyport, "run", "--home", self.home], stdout=subprocess.PIPE)
        atexit.register(self.process.kill)
        self.process.stdout.readline()

    def files(self, number):
        return os.path.join(self.directory, f"p{number}.pem"), os.path.join(self.directory, f"p{number}.key")

    def command(self, *arguments):
        return subprocess.run([self.sallyport, *arguments, "--home", self.home], check=True, stdout=subprocess.PIPE, text=True).stdout

    def curl(self, number=0):
        certificate, key = self.files(number)
        return ["curl", "-sS", "--fail", "--tlsv1.3", "--insecure", "--cert", certificate, "--key", key]

    def offer(self, path, number=0, agreement=None):
        """Puts a file in the outbox; the id under which it waits."""
        outbox = os.path.join(self.home, "outbox", agreement or f"c{number}")
        while not os.path.exists(os.path.join(outbox, ".sallyport-folder")):
            time.sleep(0.05)
        os.rename(path, os.path.join(outbox, os.path.basename(path)))
        while True:
            answer = subprocess.run([*self.curl(number), f"{self.url}/v1/transfers?after={self.cursors.get(number, 0)}&wait=30"],
                                    capture_output=True, text=True).stdout
            found = re.search('"id":"([a-z2-7]{26})"', answer)
            if found:
                self.cursors[number] = int(re.search('"cursor":([0-9]+)', answer).group(1))
                return found.group(1)

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def tls(mailbox, number):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(*mailbox.files(number))
    return context


async def connect(mailbox, context):
    """One partner's connection, with its first list."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mailbox.port, ssl=context)
    await ask(reader, writer)
    return reader, writer


async def ask(reader, writer):
    writer.write(b"GET /v1/transfers HTTP/1.1\r\nHost: g\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", head).group(1)))
    return head


async def poll(connection, wait, until, times, failures):
    """One partner that asks for its list once a second, at its own moment of the second."""
    try:
        await asyncio.sleep(wait)
        while time.monotonic() < until:
            start = time.monotonic()
            head = await ask(*connection)
            times.append(time.monotonic() - start)
            if not head.startswith(b"HTTP/1.1 200"):
                failures.append(head)
            await asyncio.sleep(max(0, 1 - (time.monotonic() - start)))
    except Exception as error:
        failures.append(repr(error))


def download(mailbox, downloads):
    """All downloads at 4 MB/s each in one curl: as many processes as downloads would take the two cores from the gateway."""
    arguments = []
    for number, id, _ in downloads:
        arguments += [*(["--next"] if arguments else []), *mailbox.curl(number)[1:], "--limit-rate", "4M", "-o", os.devnull,
                      "-w", "%{size_download}\n", f"{mailbox.url}/v1/transfers/{id}/body"]
    return downloads and subprocess.Popen(["curl", "--parallel", "--parallel-immediate", "--parallel-max", "64", *arguments],
                                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def crowd(mailbox, pollers, downloads, seconds, together):
    """(list latencies in order, failures, downloads that were whole): `downloads` is (number, id, bytes) each.
    All partners are connected before the clock starts; they ask spread over the second or, `together`, all in the same moment of it."""
    times, failures = [], []
    contexts = [tls(mailbox, n) for n in pollers]

    async def everybody():
        connections = [await connect(mailbox, context) for context in contexts]
        process = download(mailbox, downloads)
        until = time.monotonic() + seconds
        await asyncio.gather(*(poll(connection, 0 if together else number / len(connections), until, times, failures)
                               for number, connection in enumerate(connections)))
        for _, writer in connections:
            writer.close()
        return process

    process = asyncio.run(everybody())
    sizes = process.communicate()[0].split() if process else []
    return sorted(times), failures, sum(int(size) == expected for size, (_, _, expected) in zip(sizes, downloads))
