"""Names of the two container images; read by component.py when a pipeline is compiled.

$FEDHELP_HUB_IMAGE and $FEDHELP_SILO_IMAGE replace them, so that a platform team compiles for its own registry.
"""

import os

VERSION = "0.1.0"
HUB_IMAGE = os.environ.get("FEDHELP_HUB_IMAGE", f"fedhelp/hub:{VERSION}")
SILO_IMAGE = os.environ.get("FEDHELP_SILO_IMAGE", f"fedhelp/silo:{VERSION}")
