"""The summary of a model: modules, shapes, parameters, memory."""
