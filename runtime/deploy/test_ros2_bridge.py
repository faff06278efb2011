"""Tests of ros2_bridge.py, without ROS and without a model: python3 -m unittest test_ros2_bridge (in this directory)."""
import contextlib
import io
import json
import os
import queue
import sys
import tempfile
import threading
import time
import types
import unittest
from unittest import mock

import ros2_bridge
from ros2_bridge import Bridge

# Does what the query's first word says; a line of JSON in, a line out, as the runtime does.
FAKE = """
import json, os, sys, time
for number, line in enumerate(sys.stdin, 1):
    try:
        request = json.loads(line)
    except ValueError:
        request = {}
    query = request.get("query", "error")
    if query == "die":
        sys.stdout.write('{"half": ')
        sys.stdout.flush()
        os._exit(3)
    if query == "hang":
        time.sleep(60)
    if query.startswith("slow"):
        time.sleep(0.6 if query == "slower" else 0.2)
    if query == "chatter":
        print("not JSON")
    if query == "error":
        answer = {"error": f"line {number}: no", "line": number}
    else:
        answer = {"query": query, "results": [], "pid": os.getpid()}
        answer.update({key: request[key] for key in ["id", "k", "filter"] if key in request})
    print(json.dumps(answer), flush=True)
"""


class BridgeTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.fake = os.path.join(folder.name, "runtime.py")
        with open(self.fake, "w") as file:
            file.write(FAKE)
        self.answers, self.log = queue.Queue(), []

    def bridge(self, command=None, **options):
        # -S and -E: a quick start, and nothing of the machine's own set-up.
        command = command or [sys.executable, "-S", "-E", self.fake]
        options = {"first_delay": 0.05, "longest_delay": 0.2, "log": self.log.append} | options
        bridge = Bridge(command, self.answers.put, **options)
        self.addCleanup(bridge.close)
        return bridge

    def answer(self):
        return json.loads(self.answers.get(timeout=3))

    def ask(self, bridge, text):
        bridge.ask(text)
        return self.answer()

    def ask_until_answered(self, bridge, text):
        """What a robot does that asks again after an error."""
        end = time.monotonic() + 3
        while "error" in (answer := self.ask(bridge, text)):
            self.assertLess(time.monotonic(), end, answer)
            time.sleep(0.02)
        return answer

    def test_plain_text_and_json_are_answered(self):
        """A robot that sends either form must get its answer, and be able to tell whose it is."""
        bridge = self.bridge()
        self.assertEqual(self.ask(bridge, 'I spilled\\nmy "coffee" ☕')["query"], 'I spilled\\nmy "coffee" ☕')
        sent = {"query": "tea", "k": 2, "filter": {"room": "kitchen"}, "id": [7, "x"]}
        answer = self.ask(bridge, json.dumps(sent, indent=1))
        self.assertEqual({key: answer[key] for key in sent}, sent)

    def test_answers_keep_their_order_and_one_process(self):
        """Ids are matched by order: one answer out of step, and every later one goes to the wrong query."""
        bridge = self.bridge()
        for number in range(50):
            query = ["x", "error", "chatter"][number % 3]
            bridge.ask(json.dumps({"query": query, "id": number}))
        answers = [self.answer() for _ in range(50)]
        self.assertEqual([answer["id"] for answer in answers], list(range(50)))
        self.assertEqual(["error" in answer for answer in answers], [number % 3 == 1 for number in range(50)])
        self.assertEqual(len({answer["pid"] for answer in answers if "pid" in answer}), 1)
        self.assertTrue(any("not JSON" in line for line in self.log))

    def test_what_cannot_be_asked_is_told(self):
        """A query that vanishes leaves the robot waiting."""
        bridge = self.bridge()
        for text in ["", " \n", '{"query": ', "{" * 100_000]:
            self.assertIn("the query", self.ask(bridge, text)["error"])
        self.assertEqual(self.ask(bridge, '{"id": 4}'), {"error": "line 1: no", "line": 1, "id": 4})

    def test_a_slow_runtime_blocks_nobody(self):
        """The executor also runs the robot's other callbacks: asking must return at once, even if the pipe is full."""
        bridge = self.bridge()
        start = time.monotonic()
        for number in range(20):
            bridge.ask(json.dumps({"query": "slower" if number == 0 else "x" * 50_000, "id": number}))
        self.assertLess(time.monotonic() - start, 0.4)
        self.assertEqual([self.answer()["id"] for _ in range(20)], list(range(20)))

    def test_too_many_are_refused(self):
        """A queue without a bound answers, in the end, what was asked minutes ago."""
        bridge = self.bridge(max_pending=3)
        for number, query in enumerate(["slow", "a", "b", "c"]):
            bridge.ask(json.dumps({"query": query, "id": number}))
        self.assertEqual(self.answer(), {"error": "3 queries are waiting already", "id": 3})
        self.assertEqual([self.answer()["id"] for _ in range(3)], [0, 1, 2])

    def test_death_is_told_and_survived(self):
        """Each query in flight gets one error, none the answer of another, and the next process answers."""
        bridge = self.bridge()
        first = self.ask(bridge, "x")["pid"]
        for number, query in enumerate(["slow", "die", "a", "b"]):
            bridge.ask(json.dumps({"query": query, "id": number}))
        self.assertEqual(self.answer()["id"], 0)
        for number in [1, 2, 3]:
            self.assertEqual(self.answer(), {"error": "the runtime ended with status 3", "id": number})
        self.assertNotEqual(self.ask_until_answered(bridge, "x")["pid"], first)
        self.assertTrue(self.answers.empty())

    def test_silence_is_ended(self):
        """A process that hangs would otherwise hold up every later query."""
        bridge = self.bridge(timeout=0.4)
        bridge.ask('{"query": "hang", "id": 1}')
        bridge.ask('{"query": "x", "id": 2}')
        for number in [1, 2]:
            self.assertEqual(self.answer(), {"error": "the runtime did not answer within 0.4 s", "id": number})
        self.assertEqual(self.ask_until_answered(bridge, "x")["query"], "x")

    def test_patience_is_counted_for_each_query(self):
        """A long queue is no silence: its last query may wait longer than the limit."""
        bridge = self.bridge(timeout=0.5)
        self.ask(bridge, "x")
        for number in range(4):
            bridge.ask(json.dumps({"query": "slow", "id": number}))
        self.assertEqual([self.answer().get("error") for _ in range(4)], [None] * 4)

    def test_a_runtime_that_does_not_start_is_not_tried_for_ever_at_once(self):
        """Without back-off a wrong path fills a log and a core."""
        bridge = self.bridge([os.path.join(os.path.dirname(self.fake), "missing")], first_delay=0.05, longest_delay=0.1)
        self.assertIn("does not start", self.ask(bridge, "x")["error"])
        time.sleep(0.4)
        self.assertIn(len(self.log), range(3, 7), self.log)
        self.assertTrue(self.log[0].endswith("0.05 s") and self.log[-1].endswith("0.1 s"), self.log)

    def test_closing_ends_the_process_and_answers(self):
        """A process that outlives its node keeps the model in memory."""
        bridge = self.bridge(patience=0.1)
        pid = self.ask(bridge, "x")["pid"]
        bridge.ask('{"query": "hang", "id": 1}')
        bridge.close()
        self.assertEqual(self.answer(), {"error": "the bridge was closed", "id": 1})
        self.assertEqual(self.ask(bridge, "x")["error"], "the bridge was closed")
        with self.assertRaises(ProcessLookupError):
            os.kill(pid, 0)

    def test_an_answer_that_cannot_be_published_is_not_the_last(self):
        """Publishing fails while ROS shuts down; the reader must live to end the process."""
        bridge = self.bridge()
        with mock.patch.object(bridge, "on_answer", side_effect=RuntimeError("no context")):
            bridge.ask("x")
            end = time.monotonic() + 3
            while not any("no context" in line for line in self.log):
                self.assertLess(time.monotonic(), end)
                time.sleep(0.02)
        self.assertEqual(self.ask(bridge, "y")["query"], "y")


class NodeTest(unittest.TestCase):
    """The node against stand-ins for rclpy and std_msgs: its wiring only."""

    def run_node(self, parameters, spin):
        node = mock.Mock()
        node.declare_parameter = lambda name, default: mock.Mock(value=parameters.get(name, default))
        shutdown = type("ExternalShutdownException", (Exception,), {})
        modules = {
            "rclpy": mock.Mock(spin=spin),
            "rclpy.executors": types.SimpleNamespace(ExternalShutdownException=shutdown),
            "rclpy.node": types.SimpleNamespace(Node=lambda name: node),
            "std_msgs": mock.Mock(),
            "std_msgs.msg": types.SimpleNamespace(String=types.SimpleNamespace),
        }
        with mock.patch.dict(sys.modules, modules):
            ros2_bridge.main()
        return node

    def test_a_message_in_is_a_message_out(self):
        """A wrong topic or command line is seen on the robot only."""
        with tempfile.TemporaryDirectory() as folder:
            fake = os.path.join(folder, "runtime")
            with open(fake, "w") as file:
                file.write(f"#!{sys.executable} -SE\nimport sys\nfor line in sys.stdin:\n")
                file.write("    print('{\"argv\": \"' + ' '.join(sys.argv[1:]) + '\"}', flush=True)\n")
            os.chmod(fake, 0o755)
            published = threading.Event()

            def spin(node):
                node.create_publisher.return_value.publish.side_effect = lambda message: published.set()
                node.create_subscription.call_args.args[2](types.SimpleNamespace(data="coffee"))
                self.assertTrue(published.wait(3))
                raise KeyboardInterrupt

            node = self.run_node({"runtime": fake, "bundle": "B", "index": "I", "k": 3}, spin)
        self.assertEqual(node.create_publisher.call_args.args[1:], ("~/answer", 10))
        self.assertEqual(node.create_subscription.call_args.args[1], "~/query")
        message = node.create_publisher.return_value.publish.call_args.args[0]
        self.assertEqual(json.loads(message.data), {"argv": "query --stdin --bundle B --index I -k 3"})

    def test_a_missing_parameter_is_named(self):
        """Without its name, the way out is in the source only."""
        with self.assertRaises(SystemExit) as ended, contextlib.redirect_stderr(io.StringIO()):
            self.run_node({"bundle": "B"}, None)
        self.assertIn("index:=DIR", str(ended.exception))


if __name__ == "__main__":
    unittest.main()
