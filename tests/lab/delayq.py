#!/usr/bin/env python3
"""Hold packets of one netfilter queue for a while: delayq.py QUEUE MS [JITTER_MS]

For kernels without the netem qdisc. An iptables rule sends packets to NFQUEUE; this gives each
one its verdict (accept) after MS +/- JITTER milliseconds, in order. Standard library only.
"""

import heapq, random, select, signal, socket, struct, sys, time

NETLINK_NETFILTER, SUBSYS_QUEUE = 12, 3
PACKET, VERDICT, CONFIG = 0, 1, 2


def attr(kind, payload):
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def message(kind, queue, body, flags=1):
    head = struct.pack("!BBH", 0, 0, queue)
    return struct.pack("=LHHLL", 16 + len(head) + len(body), SUBSYS_QUEUE << 8 | kind, flags, 0, 0) + head + body


def main():
    queue, delay = int(sys.argv[1]), float(sys.argv[2]) / 1000
    jitter = float(sys.argv[3]) / 1000 if len(sys.argv) > 3 else 0.0
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    sock.bind((0, 0))
    sock.send(message(CONFIG, queue, attr(1, struct.pack("!BBH", 1, 0, socket.AF_INET))))  # bind
    sock.send(message(CONFIG, queue, attr(2, struct.pack("!LB", 0, 1))))  # copy meta only
    sock.send(message(CONFIG, queue, attr(3, struct.pack("!L", 65536))))  # queue length
    sock.send(message(CONFIG, queue, attr(4, struct.pack("!L", 5)) + attr(5, struct.pack("!L", 5))))  # fail open, GSO
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, lambda *_: sys.exit(0))
    waiting, last, count = [], 0.0, 0
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        if select.select([sock], [], [], timeout)[0]:
            try:
                data = sock.recv(1 << 20)
            except OSError:  # ENOBUFS: packets beyond the queue pass undelayed
                continue
            now = time.monotonic()
            while len(data) >= 16:
                size, kind = struct.unpack_from("=LH", data)
                if kind == SUBSYS_QUEUE << 8 | PACKET:
                    at = 20
                    while at < size:
                        alen, akind = struct.unpack_from("=HH", data, at)
                        if akind & 0x7FFF == 1:
                            due = max(last, now + delay + random.uniform(-jitter, jitter))
                            last, count = due, count + 1
                            heapq.heappush(waiting, (due, count, data[at + 4 : at + 8]))
                            break
                        at += alen + 3 & ~3
                data = data[size + 3 & ~3 :]
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            packet_id = heapq.heappop(waiting)[2]
            sock.send(message(VERDICT, queue, attr(2, struct.pack("!L", 1) + packet_id)))


if __name__ == "__main__":
    main()
