"""Local intelligence (first cut, to be replaced)."""
class LocalIntelligence:
    async def analyse_many(self, requests):
        return [None for _ in requests]
