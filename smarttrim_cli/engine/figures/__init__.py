"""Pictures of what a model keeps and drops; ``engine.visualize`` is the way in."""
