"""What several test modules share: places, processes, folders compared before and after, statistics written by hand, imitations of servers."""
