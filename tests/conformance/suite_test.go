// Package conformance is the conformance suite of ClusterNetworkPolicy as one program: `go test -c` of this, with the
// suite's own flags. It does what the suite's own TestConformanceProfiles does, and lets its caller say how long a packet
// that should be dropped is waited for, which the suite has an option for, but no flag.
package conformance

import (
	"os"
	"testing"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"
	api "sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/network-policy-api/conformance/tests"
	timeouts "sigs.k8s.io/network-policy-api/conformance/utils/config"
	"sigs.k8s.io/network-policy-api/conformance/utils/flags"
	"sigs.k8s.io/network-policy-api/conformance/utils/suite"
	"sigs.k8s.io/yaml"
)

func TestConformanceProfiles(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	cluster, err := config.GetConfig()
	must(err)
	crClient, err := client.New(cluster, client.Options{})
	must(err)
	clientSet, err := kubernetes.NewForConfig(cluster)
	must(err)
	must(api.Install(crClient.Scheme()))
	must(apiextensions.AddToScheme(crClient.Scheme()))
	implementation, err := suite.ParseImplementation(
		*flags.ImplementationOrganization, *flags.ImplementationProject, *flags.ImplementationURL,
		*flags.ImplementationVersion, *flags.ImplementationContact, *flags.ImplementationAdditionalInformation)
	must(err)

	run, err := suite.NewConformanceProfileTestSuite(suite.ConformanceProfileOptions{
		Options: suite.Options{
			Client:                     crClient,
			ClientSet:                  clientSet,
			KubeConfig:                 *cluster,
			Debug:                      *flags.ShowDebug,
			CleanupBaseResources:       *flags.CleanupBaseResources,
			SupportedFeatures:          suite.ParseSupportedFeatures(*flags.SupportedFeatures),
			ExemptFeatures:             suite.ParseSupportedFeatures(*flags.ExemptFeatures),
			EnableAllSupportedFeatures: *flags.EnableAllSupportedFeatures,
			TimeoutConfig:              timeouts.TimeoutConfig{RequestTimeout: requestTimeout(t)},
		},
		Implementation:      *implementation,
		ConformanceProfiles: suite.ParseConformanceProfiles(*flags.ConformanceProfiles),
	})
	must(err)
	run.Setup(t)
	must(run.Run(t, tests.ConformanceTests))
	report, err := run.Report()
	must(err)
	text, err := yaml.Marshal(report)
	must(err)
	must(os.WriteFile(*flags.ReportOutput, text, 0o644))
}

// How long a packet that should be dropped is waited for: the suite's own default, unless told.
func requestTimeout(t *testing.T) time.Duration {
	told := os.Getenv("CONFORMANCE_REQUEST_TIMEOUT")
	if told == "" {
		return 0
	}
	timeout, err := time.ParseDuration(told)
	if err != nil {
		t.Fatalf("read CONFORMANCE_REQUEST_TIMEOUT: %v", err)
	}
	return timeout
}
