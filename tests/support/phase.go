// Says what Argo Rollouts makes of an answer of Prometheus: its own provider asks, and gets that answer.
//
// A line of input is a metric of an AnalysisTemplate and the values of the samples; a line of output the measurement.
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

// An answer stands for Prometheus: an instant query is all that it can be asked.
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
		var asked struct {
			Metric v1alpha1.Metric
			Values []model.SampleValue // as Prometheus writes them: strings, among them NaN
		}
		if err := input.Decode(&asked); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		samples := model.Vector{}
		for _, value := range asked.Values {
			samples = append(samples, &model.Sample{Value: value})
		}
		provider, err := prometheus.NewPrometheusProvider(answer{samples: samples}, *logrus.NewEntry(logrus.New()), asked.Metric)
		if err != nil {
			log.Fatal(err)
		}
		if err := output.Encode(provider.Run(nil, asked.Metric)); err != nil {
			log.Fatal(err)
		}
	}
}
