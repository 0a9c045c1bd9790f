// Command node is the upstream kubelet and kube-proxy, unmodified, chosen by the first argument.
//
// The tests on real nodes run it: see tests/nodes.
package main

import (
	"context"
	"fmt"
	"os"

	"k8s.io/component-base/cli"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	if len(os.Args) > 1 {
		os.Args = os.Args[1:]
		switch os.Args[0] {
		case "kubelet":
			os.Exit(cli.Run(kubelet.NewKubeletCommand(context.Background())))
		case "kube-proxy":
			os.Exit(cli.Run(proxy.NewProxyCommand()))
		}
	}
	fmt.Fprintln(os.Stderr, "usage: node kubelet|kube-proxy [flags]")
	os.Exit(2)
}
