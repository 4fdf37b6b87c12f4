"""The current connection of a channel, from channelz, gRPC's statistics.

One name may stand for several model servers, and gRPC replaces connections without notice. gRPC numbers connections and
uses no number twice: if the number is the same before and after a call, one connection carried it.
"""

from types import SimpleNamespace

from grpc_channelz.v1 import channelz_pb2
from grpc_channelz.v1.channelz import ChannelzServicer

_IGNORED = SimpleNamespace(set_code=lambda code: None, set_details=lambda details: None)  # of a lookup that fails
CHANNELZ_OPTIONS = (
    ("grpc.enable_channelz", 1),
    ("grpc.max_channel_trace_event_memory_per_node", 0),  # bytes; the history of a channel is not used
)


class ConnectionReader:
    """Reads the newest channel to `target`; create it right after that channel."""

    def __init__(self, target: str) -> None:
        channels = ChannelzServicer.GetTopChannels(channelz_pb2.GetTopChannelsRequest(), _IGNORED).channel
        channel_id = max(channel.ref.channel_id for channel in channels if channel.data.target.endswith(target))
        self._request = channelz_pb2.GetChannelRequest(channel_id=channel_id)

    def read(self) -> int | None:
        """Return the number of the only connection, or None; takes 0.5 ms."""
        sockets: list[int] = []
        channel = ChannelzServicer.GetChannel(self._request, _IGNORED)
        for ref in channel.channel.subchannel_ref if channel else ():
            request = channelz_pb2.GetSubchannelRequest(subchannel_id=ref.subchannel_id)
            subchannel = ChannelzServicer.GetSubchannel(request, _IGNORED)
            if subchannel:  # it may have gone since
                sockets += [socket.socket_id for socket in subchannel.subchannel.socket_ref]
        return sockets[0] if len(sockets) == 1 else None
