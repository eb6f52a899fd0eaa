// Open Cluster Management's work agent alone: fetches the ManifestWorks of one cluster from its hub, applies them here, reports back.
// OCM's own command links its registration agent too, which the tests have no use for.
package main

import (
	"context"
	"flag"
	"log"
	"os/signal"
	"syscall"
	"time"

	"github.com/openshift/library-go/pkg/controller/controllercmd"
	"k8s.io/client-go/tools/clientcmd"
	"open-cluster-management.io/api/feature"
	"open-cluster-management.io/ocm/pkg/common/options"
	"open-cluster-management.io/ocm/pkg/features"
	"open-cluster-management.io/ocm/pkg/work/spoke"
)

func main() {
	hub := flag.String("hub", "", "kubeconfig for the hub's cluster")
	here := flag.String("here", "", "kubeconfig for the cluster that works are applied in")
	name := flag.String("cluster", "", "that cluster's name: its namespace on the hub")
	report := flag.Duration("report", 10*time.Second, "time between two reports of a resource's status")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := features.SpokeMutableFeatureGate.Add(feature.DefaultSpokeWorkFeatureGates); err != nil {
		log.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", *here)
	if err != nil {
		log.Fatal(err)
	}
	agent := options.NewAgentOptions()
	agent.SpokeClusterName = *name
	work := spoke.NewWorkloadAgentOptions()
	work.WorkloadSourceConfig = *hub
	work.StatusSyncInterval = *report
	if err := spoke.NewWorkAgentConfig(agent, work).RunWorkloadAgent(ctx, &controllercmd.ControllerContext{KubeConfig: config}); err != nil {
		log.Fatal(err)
	}
}
