"""Many idle clients, to see what one costs in the proxy's memory.

As a program: opens clients, each logged in; on a line on standard input each runs one query; on the next line,
or at the end of input, it closes them. It is a process of its own so that its memory and its event loop are not
the benchmark's. Protocol: trust only, the few messages needed, no library.
"""

import argparse
import asyncio
import os
import struct
import subprocess
import sys
import time

from cluster import DATABASE, USER
from entries import allow_open_files
from processes import Failure, clean_environment

CONNECTING_MAX = 64
"""Logins under way at once."""
STEP_TIMEOUT_S = 60.0
SETTLE_S = 1.5
"""Between the last reply and the reading, so that buffers meant to be freed are."""
PRIMING_CLIENTS = 40
"""Opened and closed first, so that backends, code pages and caches exist before the first reading."""
FILES_RESERVE = 500


def startup(user, database):
    """A startup message, protocol 3.0."""
    body = struct.pack("!i", 196608)
    body += b"".join(text.encode() + b"\0" for text in ("user", user, "database", database)) + b"\0"
    return struct.pack("!i", len(body) + 4) + body


def query(sql):
    """A Query message."""
    body = sql.encode() + b"\0"
    return b"Q" + struct.pack("!i", len(body) + 4) + body


def split_messages(buffer):
    """Takes whole messages off the front of a bytearray: a list of (tag, body)."""
    messages = []
    while len(buffer) >= 5:
        size = struct.unpack_from("!i", buffer, 1)[0]
        if size < 4:
            raise ValueError(f"a message of length {size}")
        if len(buffer) < size + 1:
            break
        messages.append((chr(buffer[0]), bytes(buffer[5 : size + 1])))
        del buffer[: size + 1]
    return messages


class Client(asyncio.Protocol):
    """One client: sends, and waits for ReadyForQuery."""

    def __init__(self):
        self.buffer = bytearray()
        self.ready = None
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.buffer += data
        for tag, body in split_messages(self.buffer):
            if tag == "E":
                self.fail(RuntimeError(body.replace(b"\0", b" ").decode(errors="replace")))
            elif tag == "R" and struct.unpack_from("!i", body)[0] != 0:
                self.fail(RuntimeError("the proxy asks for a password"))
            elif tag == "Z" and self.ready and not self.ready.done():
                self.ready.set_result(None)

    def connection_lost(self, exc):
        self.fail(exc or RuntimeError("the connection was closed"))

    def fail(self, error):
        """Ends the wait with an error."""
        if self.ready and not self.ready.done():
            self.ready.set_exception(error)

    async def exchange(self, message):
        """Sends and waits until the proxy is ready again."""
        self.ready = asyncio.get_running_loop().create_future()
        self.transport.write(message)
        await asyncio.wait_for(self.ready, STEP_TIMEOUT_S)


async def open_client(port, gate):
    """A logged-in client."""
    async with gate:
        _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
        await client.exchange(startup(USER, DATABASE))
        return client


async def main(port, count):
    """The program: see the module's text."""
    allow_open_files()
    gate = asyncio.Semaphore(CONNECTING_MAX)
    loop = asyncio.get_running_loop()

    async def order():
        return await loop.run_in_executor(None, sys.stdin.readline)

    clients = await asyncio.gather(*(open_client(port, gate) for _ in range(count)))
    print("connected", flush=True)

    async def use(client):
        async with gate:
            await client.exchange(query("SELECT 1"))

    if await order():
        await asyncio.gather(*(use(client) for client in clients))
        print("used", flush=True)
        await order()
    for client in clients:
        client.transport.close()


def resident_kib(pid):
    """Resident memory of a process, KiB."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Rss:"))
    except (OSError, StopIteration):
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


class Crowd:
    """The program above, run as a child."""

    def __init__(self, children, port, count, log_path):
        argv = [sys.executable, os.path.abspath(__file__), "--port", str(port), "--clients", str(count)]
        log = open(log_path, "ab")
        try:
            self.child = children.start(
                "idle clients", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=clean_environment(),
            )
        finally:
            log.close()
        self.child.log_path = log_path
        self.children = children

    def expect(self, word):
        """Waits for the program to say a word."""
        said = self.child.process.stdout.readline().strip()
        if said != word:
            raise Failure(f"idle clients: {self.child.log_tail(1).strip() or 'ended'}")

    def order(self):
        """Lets it take the next step."""
        self.child.process.stdin.write("next\n")
        self.child.process.stdin.flush()

    def close(self):
        """Ends it."""
        self.children.stop(self.child)
        self.child.process.stdin.close()
        self.child.process.stdout.close()


def measure(children, directory, port, pids, clients):
    """KiB per idle client, fresh (just logged in) and used (after one query), of the processes `pids`."""
    clients = min(clients, allow_open_files() - FILES_RESERVE)
    log_path = os.path.join(directory, "idle.log")

    def resident():
        time.sleep(SETTLE_S)
        return sum(resident_kib(pid) for pid in pids)

    def crowd(count, read):
        people = Crowd(children, port, count, log_path)
        try:
            people.expect("connected")
            fresh = resident() if read else 0
            people.order()
            people.expect("used")
            return fresh, resident() if read else 0
        finally:
            people.close()

    crowd(PRIMING_CLIENTS, read=False)
    before = resident()
    fresh, used = crowd(clients, read=True)
    return {
        "clients": clients,
        "before_kib": before,
        "fresh_kib_per_client": (fresh - before) / clients,
        "used_kib_per_client": (used - before) / clients,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.port, arguments.clients))
