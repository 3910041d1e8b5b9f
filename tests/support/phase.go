// Evaluates answers of Prometheus with the metric provider of Argo Rollouts.
//
// Each line of input is a metric of an AnalysisTemplate and the values of the samples that Prometheus answers with. Each
// line of output is the resulting measurement.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"os"
	"time"

	"github.com/argoproj/argo-rollouts/metricproviders/prometheus"
	"github.com/argoproj/argo-rollouts/pkg/apis/rollouts/v1alpha1"
	promv1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
	"github.com/sirupsen/logrus"
)

// An answer stands in for Prometheus. It supports instant queries only.
type answer struct {
	promv1.API
	samples model.Vector
}

func (a answer) Query(context.Context, string, time.Time, ...promv1.Option) (model.Value, promv1.Warnings, error) {
	return a.samples, nil, nil
}

func main() {
	input, output := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var request struct {
			Metric v1alpha1.Metric
			Values []model.SampleValue // strings, as Prometheus writes them; NaN is possible
		}
		if err := input.Decode(&request); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		samples := model.Vector{}
		for _, value := range request.Values {
			samples = append(samples, &model.Sample{Value: value})
		}
		provider, err := prometheus.NewPrometheusProvider(answer{samples: samples}, *logrus.NewEntry(logrus.New()), request.Metric)
		if err != nil {
			log.Fatal(err)
		}
		if err := output.Encode(provider.Run(nil, request.Metric)); err != nil {
			log.Fatal(err)
		}
	}
}
