"""Who is asking: organizations, projects, API keys."""
