"""The verbs: one public function a file, and the only place that puts floors together."""
