"""Real Kubernetes for tests: one control plane (grade 1) and one node (grade 2) a session, namespaces of their own for each test.

Another folder's conftest.py imports those that it needs from tests/cluster/fixtures.py in the same way.
"""

from tests.cluster.fixtures import account, control_plane, kubeconfig, namespace, node, node_namespace

__all__ = ["account", "control_plane", "kubeconfig", "namespace", "node", "node_namespace"]
