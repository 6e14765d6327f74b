"""What compare_results.py is made of: saved runs as tables, their statistics, pictures, page and conclusions."""
