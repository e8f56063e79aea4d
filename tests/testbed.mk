# The testbed and the story: a real cluster on this machine. Root is needed.
TESTBED = cargo run --quiet --locked -p yurt-tests --bin testbed --

.PHONY: cluster clean-cluster demo test-e2e

cluster: ## Start a two-node cluster, leave it running, say how to reach it
	$(TESTBED) up

clean-cluster: ## Remove the cluster
	$(TESTBED) down

demo: image plugin ## Play the story S1-S8 on a new cluster, step by step
	$(TESTBED) demo

test-e2e: image plugin ## The story and what must hold besides, as a test (a quarter of an hour)
	cargo test --locked -p yurt-tests --test story
