"""An S3 server where the cluster expects its store, on port 9000: moto's, which keeps everything in memory.

It takes any key, so that what it cannot show is that a wrong one is refused.
"""

import threading

from moto.server import ThreadedMotoServer

ThreadedMotoServer(ip_address="0.0.0.0", port=9000, verbose=False).start()
threading.Event().wait()
