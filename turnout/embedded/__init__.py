"""A Postgres and a Valkey of our own, so that `turnout up` needs nothing installed.

`embedded_servers` starts them on a data folder, `running` finds those of another process.
"""

from turnout.embedded.errors import EmbeddedError
from turnout.embedded.folder import Servers, running
from turnout.embedded.servers import LiveServers, embedded_servers

__all__ = ["EmbeddedError", "LiveServers", "Servers", "embedded_servers", "running"]
