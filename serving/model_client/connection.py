"""The current connection of a channel, from channelz, gRPC's statistics.

One name may stand for several model servers, and gRPC replaces connections without notice. gRPC numbers connections and
uses no number twice: if the number is the same before and after a call, one connection carried it.
"""

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import grpc
from grpc_channelz.v1 import channelz_pb2
from grpc_channelz.v1.channelz import ChannelzServicer

_IGNORED = SimpleNamespace(set_code=lambda code: None, set_details=lambda details: None)  # of a lookup that fails
_OPENING = threading.Lock()
CHANNELZ_OPTIONS = (
    ("grpc.enable_channelz", 1),
    ("grpc.max_channel_trace_event_memory_per_node", 0),  # bytes; the history of a channel is not used
)


def open_channel(target: str, options: Sequence[tuple[str, Any]]) -> tuple[grpc.Channel, int]:
    """Return a new channel to `target`, and its number, for `read_connection`."""
    with _OPENING:
        # gRPC numbers a channel when channelz first lists it, so the newest may have a lower number than others.
        before = _channel_ids()
        channel = grpc.insecure_channel(target, options=(*options, *CHANNELZ_OPTIONS))
        return channel, max(_channel_ids() - before)


def _channel_ids() -> set[int]:
    response = ChannelzServicer.GetTopChannels(channelz_pb2.GetTopChannelsRequest(), _IGNORED)
    return {channel.ref.channel_id for channel in response.channel}


def read_connection(channel_id: int) -> int | None:
    """Return the number of the channel's only connection, or None (0.5 ms)."""
    sockets: list[int] = []
    channel = ChannelzServicer.GetChannel(channelz_pb2.GetChannelRequest(channel_id=channel_id), _IGNORED)
    for ref in channel.channel.subchannel_ref if channel else ():
        request = channelz_pb2.GetSubchannelRequest(subchannel_id=ref.subchannel_id)
        subchannel = ChannelzServicer.GetSubchannel(request, _IGNORED)
        if subchannel:  # it may have gone since
            sockets += [socket.socket_id for socket in subchannel.subchannel.socket_ref]
    return sockets[0] if len(sockets) == 1 else None
