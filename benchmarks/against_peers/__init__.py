"""Other projects' queues behind the interface of subjects, each used as its documentation says."""
