// Evaluates a trigger of the notifications with the engine that Argo Rollouts uses.
//
// The input is the conditions of a trigger and a list of Rollouts, the output is whether each Rollout meets one of them.
package main

import (
	"encoding/json"
	"log"
	"os"
	"slices"

	"github.com/argoproj/notifications-engine/pkg/triggers"
)

func main() {
	var request struct {
		Conditions []triggers.Condition
		Rollouts   []map[string]any
	}
	if err := json.NewDecoder(os.Stdin).Decode(&request); err != nil {
		log.Fatal(err)
	}
	service, err := triggers.NewService(map[string][]triggers.Condition{"trigger": request.Conditions})
	if err != nil {
		log.Fatal(err)
	}
	sent := []bool{}
	for _, rollout := range request.Rollouts {
		results, err := service.Run("trigger", map[string]any{"rollout": rollout})
		if err != nil {
			log.Fatal(err)
		}
		sent = append(sent, slices.ContainsFunc(results, func(r triggers.ConditionResult) bool { return r.Triggered }))
	}
	if err := json.NewEncoder(os.Stdout).Encode(sent); err != nil {
		log.Fatal(err)
	}
}
