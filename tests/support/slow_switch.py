"""A switch that delays and loses: connects network devices, each frame late by DELAY +- JITTER ms, LOSS of 100 lost.

Usage: slow_switch.py DELAY JITTER LOSS DEVICE...

For kernels without netem. Each device is the near end of a veth pair; what its far end sends is read here and sent
out of the device whose far end has that hardware address, or out of all others (broadcast). Frames of one pair of
devices keep their order, as on a line. Checksums are made here, because the kernel leaves them to the hardware that
is not there, and frames that are larger than a packet are cut up by nobody: the sender must not make them
(gso_max_segs 1). Absent on purpose: limits of bandwidth.
"""

import heapq
import random
import selectors
import socket
import struct
import sys
import time

OUTGOING = 4  # PACKET_OUTGOING: what the machine itself sends through the device.
ALL = 3  # ETH_P_ALL


def folded(data):
    """The ones' complement sum that IP, TCP and UDP use."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def summed(frame):
    """The frame with the checksum of its TCP or UDP packet made anew."""
    if frame[12:14] != b"\x08\x00" or len(frame) < 34:
        return frame
    head = 14 + (frame[14] & 15) * 4
    protocol, place = frame[23], {6: 16, 17: 6}.get(frame[23])
    packet = bytearray(frame[head : 14 + struct.unpack("!H", frame[16:18])[0]])
    if place is None or len(packet) < place + 2:
        return frame
    packet[place : place + 2] = b"\0\0"
    pseudo = frame[26:34] + struct.pack("!BBH", 0, protocol, len(packet))
    packet[place : place + 2] = struct.pack("!H", folded(pseudo + bytes(packet)))
    return frame[:head] + bytes(packet)


def main():
    delay, jitter, loss = (float(word) for word in sys.argv[1:4])
    ports = []
    watched = selectors.DefaultSelector()
    for device in sys.argv[4:]:
        port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
        port.bind((device, ALL))
        port.setblocking(False)
        watched.register(port, selectors.EVENT_READ, len(ports))
        ports.append(port)
    places, last, queue, count = {}, {}, [], 0
    print("ready", flush=True)
    while True:
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            _, _, to, frame = heapq.heappop(queue)
            try:
                ports[to].send(frame)
            except OSError:
                pass  # A full device loses frames, as real ones do.
        wait = max(0.0, queue[0][0] - now) if queue else None
        for key, _ in watched.select(wait):
            came = key.data
            for _ in range(64):
                try:
                    frame, address = ports[came].recvfrom(1 << 17)
                except BlockingIOError:
                    break
                if address[2] == OUTGOING:
                    continue
                places[frame[6:12]] = came
                known = places.get(frame[0:6]) if not frame[0] & 1 else None
                to_all = [to for to in range(len(ports)) if to != came]
                for to in to_all if known is None else [known]:
                    if to == came or random.random() * 100 < loss:
                        continue
                    late = (delay + random.uniform(-jitter, jitter)) / 1000
                    due = max(time.monotonic() + late, last.get((came, to), 0.0))
                    last[(came, to)] = due
                    count += 1
                    heapq.heappush(queue, (due, count, to, summed(frame)))


main()
