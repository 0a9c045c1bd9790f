// Command controlplane is a whole Kubernetes control plane in one binary: the
// upstream etcd, kube-apiserver, kube-controller-manager, kube-scheduler and
// kubectl, unmodified, chosen by the first argument (or by being called kubectl).
//
// It exists so that the demo and the tests run against the real thing on a
// machine that has neither a container engine nor a cluster: everything here is
// built from Go modules, nothing is downloaded as a binary.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

func main() {
	commands := map[string]func() *cobra.Command{
		"kube-apiserver":          apiserver.NewAPIServerCommand,
		"kube-controller-manager": controllermanager.NewControllerManagerCommand,
		"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
		"kubectl":                 kubectl.NewDefaultKubectlCommand,
	}
	if filepath.Base(os.Args[0]) == "kubectl" {
		os.Args = append([]string{"controlplane"}, append([]string{"kubectl"}, os.Args[1:]...)...)
	}
	if len(os.Args) < 2 {
		fail()
	}
	name := os.Args[1]
	os.Args = append([]string{name}, os.Args[2:]...)
	if name == "etcd" {
		etcdmain.Main(os.Args)
		return
	}
	command, ok := commands[name]
	if !ok {
		fail()
	}
	os.Exit(cli.Run(command()))
}

func fail() {
	fmt.Fprintln(os.Stderr, "usage: controlplane etcd|kube-apiserver|kube-controller-manager|kube-scheduler|kubectl [flags]")
	os.Exit(2)
}
