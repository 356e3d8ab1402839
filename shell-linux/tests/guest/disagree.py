"""A front end and a back end that disagree: a relay between QEMU and the server.

QEMU 10.0 asks for the record of requests in flight with the queue size that it was given, and lets
firmware and drivers start larger rings. Older ones do not, so their question is changed on its way:
the server hears of another size than the rings have.
"""

import array
import os
import socket
import struct
import threading
import time

GET_INFLIGHT_FD, SET_INFLIGHT_FD = 31, 32
HEADER = struct.Struct("=III")  # request, flags, bytes of the body
QUEUE_SIZE = 18  # where in the body of both


class Relay:
    """Listens at `path` and passes on what comes to the server at `server`, whichever is there."""

    def __init__(self, path, server, queue_size):
        self.server = str(server)
        self.queue_size = queue_size
        self.changed = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                front, _ = self.listener.accept()
            except OSError:
                return
            back = self.connect()
            ways = [(front, back, self.edit), (back, front, lambda message: message)]
            threads = [threading.Thread(target=relay, args=way, daemon=True) for way in ways]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            front.close()
            back.close()

    def connect(self):
        while True:
            back = socket.socket(socket.AF_UNIX)
            try:
                back.connect(self.server)
                return back
            except OSError:
                back.close()
                time.sleep(0.02)

    def edit(self, message):
        request, _, size = HEADER.unpack_from(message)
        if request in (GET_INFLIGHT_FD, SET_INFLIGHT_FD) and size >= QUEUE_SIZE + 2:
            struct.pack_into("=H", message, HEADER.size + QUEUE_SIZE, self.queue_size)
            self.changed += 1
        return message

    def close(self):
        self.listener.close()


def relay(source, target, edit):
    """Whole messages with their descriptors, until either side ends."""
    try:
        while True:
            message, fds = receive(source)
            target.sendmsg([edit(message)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                                              array.array("i", fds))] if fds else [])
            for fd in fds:
                os.close(fd)
    except (OSError, EOFError):
        for end in source, target:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def receive(source):
    message, fds = bytearray(), []
    while len(message) < HEADER.size or len(message) < HEADER.size + HEADER.unpack_from(message)[2]:
        wanted = HEADER.size
        if len(message) >= wanted:
            wanted += HEADER.unpack_from(message)[2]
        data, control, _, _ = source.recvmsg(wanted - len(message), socket.CMSG_SPACE(4 * 64))
        for _, _, numbers in control:
            fds += array.array("i", numbers[:len(numbers) // 4 * 4])
        if not data:
            raise EOFError
        message += data
    return message, fds
