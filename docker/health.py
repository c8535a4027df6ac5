"""Exit 0 if an address of this container answers 200: the images' health check, without a shell or curl.

python health.py 'http://127.0.0.1:$CURATOR_PORT/livez'

Variables of the environment may stand in the address, as Docker leaves them alone: the check follows the port that the
container is told to listen on.
"""

import os
import sys
import urllib.request
from http.client import HTTPException

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this container itself: never through a proxy
address = os.path.expandvars(sys.argv[1])
try:
    with opener.open(address, timeout=4) as answer:
        print(answer.read(200).decode(errors="replace"))
except (OSError, ValueError, HTTPException) as error:  # refused, silent, or an answer other than 2xx
    sys.exit(f"{address}: {error}")
