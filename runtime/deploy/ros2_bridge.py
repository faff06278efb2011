#!/usr/bin/env python3
"""Answers queries on a ROS 2 topic: keeps one `runtime query --stdin` and speaks with it through pipes.

    ros2_bridge.py --ros-args -p runtime:=/opt/rabtriever/runtime -p bundle:=/opt/rabtriever/bundle \\
        -p index:=/var/lib/rabtriever/index -p k:=3
    ros2 topic echo /rabtriever/answer
    ros2 topic pub --once /rabtriever/query std_msgs/msg/String "{data: I spilled my coffee}"
    ros2 topic pub --once /rabtriever/query std_msgs/msg/String \\
        "{data: '{\\"query\\": \\"I spilled my coffee\\", \\"filter\\": {\\"room\\": \\"kitchen\\"}, \\"id\\": 7}'}"

Topics (std_msgs/String): `~/query` takes plain text, or JSON with `query` and optional `k`, `filter` and `id`. `~/answer`
gives a line of JSON for each: `results`, `timing_ms` and `path`, or `error`; `id` is the query's. Answers keep the order of
their queries, except that a query which cannot be asked at all is told so at once.

Parameters: `runtime` (the program), `bundle`, `index`, `k` (results), `timeout` (seconds, e.g. 30.0; a process that is silent for
longer is started anew).
"""
import collections
import contextlib
import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time


def request_of(text):
    """A line for the runtime and the query's id; a ValueError says what is wrong."""
    request = {"query": text}
    if text.lstrip().startswith("{"):
        try:
            request = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the query starts like JSON, and is not: {error}") from None
    elif not text.strip():
        raise ValueError("the query is empty")
    return json.dumps(request), request.get("id")


def error_line(sentence, id=None):
    return json.dumps({"error": sentence} | ({} if id is None else {"id": id}))


class Process:
    """One run of the runtime. A thread of its own writes to it: a full pipe makes nobody else wait."""

    def __init__(self, command):
        # In a session of its own: Ctrl-C ends the node, and the node ends the process.
        self.popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        self.lines = queue.SimpleQueue()
        # Ids of the queries without an answer; answers come in their order.
        self.pending = collections.deque()
        self.waiting_since = 0.0
        self.answered = False
        threading.Thread(target=self._write, daemon=True).start()

    def send(self, line, id):
        if not self.pending:
            self.waiting_since = time.monotonic()
        self.pending.append(id)
        self.lines.put(line)

    def answer(self):
        """The id of the query whose answer has come."""
        self.waiting_since, self.answered = time.monotonic(), True
        return self.pending.popleft()

    def overdue(self, timeout):
        return bool(self.pending) and time.monotonic() - self.waiting_since > timeout

    def _write(self):
        # If it has died, whoever reads from it sees that too, and answers what is pending.
        with contextlib.suppress(OSError), self.popen.stdin as stdin:
            while (line := self.lines.get()) is not None:
                data = memoryview(line.encode() + b"\n")
                while data:
                    data = data[stdin.write(data):]

    def end(self, patience):
        """Ends it, by the end of its input at first; its exit status."""
        self.lines.put(None)
        for stop in [self.popen.terminate, self.popen.kill]:
            try:
                return self.popen.wait(patience)
            except subprocess.TimeoutExpired:
                stop()
        return self.popen.wait()


class Bridge:
    """Keeps a runtime alive and gives each query's answer to `on_answer`, from whichever thread has it.

    `ask` never blocks. While no process runs, and while `max_pending` queries wait, a query is refused at once: an answer
    half a minute late helps no robot.
    """

    def __init__(
        self, command, on_answer, log=print, timeout=30.0, max_pending=64, first_delay=0.5, longest_delay=30.0, patience=2.0
    ):
        self.command, self.on_answer, self.log = command, on_answer, log
        self.timeout, self.max_pending, self.patience = timeout, max_pending, patience
        self.first_delay, self.longest_delay = first_delay, longest_delay
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.process, self.trouble = None, ""
        # Here and not in the thread, so that nobody who asks at once is refused.
        self._start()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def ask(self, text):
        """Sends a query, plain or JSON."""
        try:
            line, id = request_of(text)
        except ValueError as error:
            return self._give(error_line(str(error)))
        with self.lock:
            if self.process is None:
                refused = self.trouble
            elif len(self.process.pending) >= self.max_pending:
                refused = f"{self.max_pending} queries are waiting already"
            else:
                return self.process.send(line, id)
        self._give(error_line(refused, id))

    def close(self):
        """Ends the process; queries without an answer get an error."""
        self.closing.set()
        self.thread.join()

    def _give(self, line):
        # One answer that cannot be delivered must not end the thread that reads the others.
        try:
            self.on_answer(line)
        except Exception as error:
            self.log(f"an answer was lost: {error}")

    def _start(self):
        try:
            process = Process(self.command)
        except OSError as error:
            self.trouble = f"the runtime does not start: {error}"
            return
        with self.lock:
            self.process = process

    def _run(self):
        delay = self.first_delay
        while True:
            process = self.process
            if process:
                self._retire(process, self._read(process))
                delay = self.first_delay if process.answered else delay
            if self.closing.is_set():
                return
            self.log(f"{self.trouble}; it is started anew in {delay:g} s")
            self.closing.wait(delay)
            if self.closing.is_set():
                return
            delay = min(2 * delay, self.longest_delay)
            self._start()

    def _read(self, process):
        """Gives answers until there are no more; why."""
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.popen.stdout, selectors.EVENT_READ)
            while not self.closing.is_set():
                with self.lock:
                    if process.overdue(self.timeout):
                        return f"the runtime did not answer within {self.timeout:g} s"
                if not selector.select(0.1):
                    continue
                data = os.read(process.popen.stdout.fileno(), 65536)
                if not data:
                    return "the runtime ended"
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._pass_on(process, line.decode(errors="replace"))
        return "the bridge was closed"

    def _pass_on(self, process, line):
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        with self.lock:
            known = isinstance(answer, dict) and bool(process.pending)
            id = process.answer() if known else None
        if not known:
            return self.log(f"the runtime said, and was not asked: {line}")
        # A line that the runtime could not read is answered without its id.
        if id is not None and "id" not in answer:
            line = json.dumps(answer | {"id": id})
        self._give(line)

    def _retire(self, process, reason):
        # First nothing more can be sent to it, then what was sent is answered: no query falls in between.
        with self.lock:
            self.process, self.trouble = None, reason
        ended = reason == "the runtime ended"
        status = process.end(self.patience if ended or self.closing.is_set() else 0.0)
        process.popen.stdout.close()
        if ended:
            self.trouble = f"{reason} with status {status}"
        for id in process.pending:
            self._give(error_line(self.trouble, id))


def main():
    # Imported here: what stands above is used and tested without ROS.
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from rclpy.node import Node
    from std_msgs.msg import String

    rclpy.init()
    node = Node("rabtriever")
    defaults = {"runtime": "runtime", "bundle": "", "index": "", "k": 5, "timeout": 30.0}
    given = {name: node.declare_parameter(name, default).value for name, default in defaults.items()}
    missing = [name for name in ["bundle", "index"] if not given[name]]
    if missing:
        sys.exit(f"ros2_bridge: parameter {missing[0]} is missing; give it by --ros-args -p {missing[0]}:=DIR")
    command = [given["runtime"], "query", "--stdin", "--bundle", given["bundle"], "--index", given["index"]]
    command += ["-k", str(given["k"])]
    publisher = node.create_publisher(String, "~/answer", 10)
    warn = node.get_logger().warning
    bridge = Bridge(command, lambda line: publisher.publish(String(data=line)), log=warn, timeout=given["timeout"])
    node.create_subscription(String, "~/query", lambda message: bridge.ask(message.data), 10)
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        bridge.close()
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
