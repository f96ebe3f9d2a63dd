"""Text generation on Ray Serve, as OpenAI's clients know it: configuration, engine, deployments."""
