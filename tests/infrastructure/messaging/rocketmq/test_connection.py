"""One client of RocketMQ: what is left of it when it could not connect."""

import gc
import subprocess
import sys

CLOSED_FOR_GOOD = """
import gc, socket
from coupon_clock.infrastructure.messaging.broker import BrokerUnavailable
from coupon_clock.infrastructure.messaging.rocketmq.access import Access
from coupon_clock.infrastructure.messaging.rocketmq.connection import Connection
from coupon_clock.infrastructure.settings import Settings

gc.disable()
with socket.socket() as nobody:
    nobody.bind(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
settings = Settings.load(database_url="postgresql://x@/x", rocketmq_endpoints=f"127.0.0.1:{port}")
connection = Connection.for_receiving(Access.of(settings))
try:
    connection.start()
except BrokerUnavailable:
    pass
((channel,),) = [[each._RpcChannel__async_channel] for each in connection._client.rpc_client.channels._map.values()]
connection.close()
print(sorted({type(each).__name__ for each in gc.get_referrers(channel._channel)}))
"""


def test_a_call_that_failed_keeps_no_socket_open_though_no_garbage_is_collected():
    """A process of ours collects rarely, and each attempt while the broker is away would leave one."""
    assert gc.isenabled()
    ran = subprocess.run([sys.executable, "-c", CLOSED_FOR_GOOD], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "_AioCall" not in ran.stdout
    assert "Channel" in ran.stdout
