"""Hostile clients of a partner port.

Usage: clients.py crowd PORT COUNT SECONDS            opens plain connections, says nothing on them, and keeps them
       clients.py halfclosed PORT COUNT CERT KEY      asks, closes its sending half, and reads: prints how many were answered
       clients.py tunnel PORT CERT KEY                listens, prints its own port, and carries every connection to PORT over mutual TLS:
                                                      tools that cannot show a certificate become partners
"""

import asyncio
import resource
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor


def context(certificate: str, key: str) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    tls.load_cert_chain(certificate, key)
    return tls


async def crowd(port: int, count: int, seconds: float) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    kept = []
    for _ in range(count):
        try:
            one = socket.create_connection(("127.0.0.1", port), timeout=1)
            one.setblocking(False)
            kept.append(one)
        except OSError:
            pass
    print(len(kept), flush=True)
    await asyncio.sleep(seconds)


async def half_closed(port: int, count: int, certificate: str, key: str) -> None:
    tls = context(certificate, key)

    def one() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
                connection = tls.wrap_socket(plain)
                connection.sendall(b"GET /v1/card HTTP/1.1\r\nHost: x\r\n\r\n")
                # The connection's sending half ends without a word of TLS.
                socket.socket.shutdown(connection, socket.SHUT_WR)
                return b"200 OK" in connection.recv(4096)
        except OSError:
            return False

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(count) as pool:
        answers = await asyncio.gather(*(loop.run_in_executor(pool, one) for _ in range(count)))
    print(sum(answers), flush=True)


async def tunnel(port: int, certificate: str, key: str) -> None:
    tls = context(certificate, key)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        except (OSError, ssl.SSLError):
            pass
        target.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        except (OSError, ssl.SSLError):
            writer.close()
            return
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    server = await asyncio.start_server(carry, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


mode, port, *rest = sys.argv[1:]
if mode == "crowd":
    asyncio.run(crowd(int(port), int(rest[0]), float(rest[1])))
elif mode == "halfclosed":
    asyncio.run(half_closed(int(port), int(rest[0]), *rest[1:]))
else:
    asyncio.run(tunnel(int(port), *rest))
