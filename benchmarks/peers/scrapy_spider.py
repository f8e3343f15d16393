"""`scrapy_spider.py URLS`: a Scrapy spider reads every body, stores nothing, and prints how many came."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import scrapy
from scrapy.crawler import CrawlerProcess

SETTINGS = {
    "CONCURRENT_REQUESTS": 256,
    "CONCURRENT_REQUESTS_PER_DOMAIN": 8,
    "DOWNLOAD_DELAY": 0,
    "DOWNLOAD_TIMEOUT": 20,
    "ROBOTSTXT_OBEY": False,
    "RETRY_ENABLED": False,
    "COOKIES_ENABLED": False,
    "TELNETCONSOLE_ENABLED": False,
    "LOG_LEVEL": "ERROR",
}


class Spider(scrapy.Spider):
    """Asks for each URL once."""

    name = "bench"
    good = 0

    async def start(self) -> AsyncIterator[scrapy.Request]:
        """The requests; the duplicate filter has nothing to do."""
        for url in Path(sys.argv[1]).read_text().split():
            yield scrapy.Request(url, dont_filter=True)

    def parse(self, response: scrapy.http.Response) -> None:
        """Count it."""
        Spider.good += response.status == 200


if __name__ == "__main__":
    process = CrawlerProcess(SETTINGS)
    process.crawl(Spider)
    process.start()
    print(Spider.good)
