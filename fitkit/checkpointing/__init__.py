"""From a state dict to disk and back: schema, durable files, names, discovery."""
