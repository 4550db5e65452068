"""The work behind the stages: identities, staging, trainings, pairs, evaluations."""
