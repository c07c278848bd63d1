"""A bad network between network namespaces: forwards IP packets between them, and loses some.

Usage: router.py PREFIX NAME...    makes the namespaces PREFIX-NAME, the first with the address 10.99.0.1, the next 10.99.0.2, and so on.
Commands on standard input, one a line: `loss PERCENT`; `cut NAME` (nothing comes through), `reset NAME` (every TCP connection of its is
reset, as by a middlebox), `heal NAME`. Says `ready` when packets go. Ends with its input, and removes the namespaces. Needs root. Each
namespace has one TUN device, whose other end is here; nothing else leads out of it.
"""

import ctypes
import fcntl
import os
import random
import select
import struct
import subprocess
import sys

TUNSETIFF, IFF_TUN_NO_PI, CLONE_NEWNET = 0x400454CA, 0x1001, 0x40000000


def device(namespace: str, address: str) -> int:
    """A TUN device inside a namespace; its descriptor outside of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    inside = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(inside, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", b"tun0", IFF_TUN_NO_PI))
    if libc.setns(home, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(home)
    os.close(inside)
    for command in (f"addr add {address}/24 dev tun0", "link set tun0 up", "link set lo up"):
        subprocess.run(["ip", "-n", namespace, *command.split()], check=True)
    return tun


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def reset(packet: bytes) -> bytes | None:
    """The RST that ends the connection of a TCP packet for who sent it; None for other packets."""
    start = (packet[0] & 15) * 4
    if packet[9] != 6 or len(packet) < start + 20:
        return None
    ports, acknowledged, flags = packet[start : start + 4], packet[start + 8 : start + 12], packet[start + 13]
    if not flags & 0x10 or flags & 4:
        return None
    source, target = packet[16:20], packet[12:16]
    tcp = ports[2:] + ports[:2] + acknowledged + bytes([0, 0, 0, 0, 0x50, 4, 0, 0, 0, 0, 0, 0])
    tcp = tcp[:16] + struct.pack("!H", checksum(source + target + bytes([0, 6, 0, 20]) + tcp)) + tcp[18:]
    head = bytes([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]) + source + target
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + tcp


def main() -> None:
    prefix, names = sys.argv[1], sys.argv[2:]
    addresses = {name: f"10.99.0.{index + 1}" for index, name in enumerate(names)}
    devices, cut, torn, loss = {}, set(), set(), 0.0
    try:
        for name, address in addresses.items():
            subprocess.run(["ip", "netns", "add", f"{prefix}-{name}"], check=True)
            devices[name] = device(f"{prefix}-{name}", address)
        names_by_device = {tun: name for name, tun in devices.items()}
        by_address = {bytes(map(int, address.split("."))): name for name, address in addresses.items()}
        print("ready", flush=True)
        while True:
            for ready in select.select([0, *names_by_device], [], [])[0]:
                if ready == 0:
                    line = sys.stdin.readline()
                    if not line:
                        return
                    word, value = line.split()
                    if word == "loss":
                        loss = float(value) / 100
                    elif word == "heal":
                        cut.discard(value)
                        torn.discard(value)
                    else:
                        (cut if word == "cut" else torn).add(value)
                    continue
                packet = os.read(ready, 65536)
                target = by_address.get(packet[16:20])
                if target is None or packet[0] >> 4 != 4 or random.random() < loss:
                    continue
                if {target, names_by_device[ready]} & cut:
                    continue
                back = None
                if {target, names_by_device[ready]} & torn:
                    back = reset(packet)
                try:
                    os.write(ready if back else devices[target], back or packet)
                except OSError:
                    pass  # its queue is full: one more loss
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", f"{prefix}-{name}"], check=False, stderr=subprocess.DEVNULL)


main()
